"""How a network is trained on labelled images, as plain values."""

import math
from dataclasses import dataclass, fields
from itertools import pairwise

from ldnq.errors import UsageError

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("one-cycle", "cosine", "step", "plateau", "constant")
KEEP = ("last", "best")
# Where the rate of the schedule 'step' falls if nobody says otherwise, as shares of the epochs.
MILESTONES = (0.5, 0.75)
# Fields that only some schedules read.
OF_SCHEDULES = {"milestones": ("step",), "gamma": ("step", "plateau"), "patience": ("plateau",)}
# Fields that only a training with a teacher reads.
OF_TEACHER = ("distillation", "temperature")


@dataclass(frozen=True)
class TrainingRecipe:
    """Gradient descent on the cross-entropy: SGD with Nesterov `momentum`, or Adam, whose mean of gradients has it; the
    rate is moved after every step, or by loss after every epoch (plateau).

    The rate rises over `warmup` epochs (one-cycle: 0 leaves it three tenths of all) and falls by the factor `gamma` at
    the `milestones`, epochs or, below one, shares of them, or after `patience` epochs without a lower loss. With a
    teacher the share `distillation` of the loss is the divergence from its outputs, softened by `temperature`. An
    average of the weights with the decay `ema` is what is measured and kept; gradients are cut to the norm `clip`; of
    both, and of the share `hold_out` of the images that chooses the epoch to `keep`, zero means none. Every
    `test_every` epochs, and after the last, test images are measured.
    """

    epochs: int = 40
    batch_size: int = 128
    lr: float = 0.2
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    seed: int = 0
    optimizer: str = "sgd"
    momentum: float = 0.9
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    patience: int = 5
    warmup: float = 0.0
    label_smoothing: float = 0.0
    distillation: float = 0.5
    temperature: float = 4.0
    ema: float = 0.0
    clip: float = 0.0
    hold_out: float = 0.0
    keep: str = "last"
    test_every: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("keep", KEEP)):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"expected {name} {', '.join(known)}, got {value!r}")
        if self.epochs < 1 or self.batch_size < 2:
            raise UsageError(
                f"expected at least 1 epoch and batches of at least 2, got {self.epochs} and {self.batch_size}"
            )
        for name, what in (("lr", "learning rate"), ("temperature", "temperature")):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise UsageError(f"expected a positive {what}, got {value}")
        for name in ("weight_decay", "clip", "seed", "patience", "test_every"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UsageError(f"expected {_said(name)} of at least 0, got {value}")
        for name in ("momentum", "label_smoothing", "ema", "hold_out"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise UsageError(f"expected {_said(name)} of at least 0 and below 1, got {value}")
        if not 0 < self.gamma < 1:
            raise UsageError(f"expected a gamma above 0 and below 1, got {self.gamma}")
        if not 0 < self.distillation <= 1:
            raise UsageError(f"expected a share of distillation above 0 and at most 1, got {self.distillation}")
        self._check_schedule()

    def _check_schedule(self) -> None:
        for name in self.changed() & OF_SCHEDULES.keys():
            if self.schedule not in OF_SCHEDULES[name]:
                known = " or ".join(OF_SCHEDULES[name])
                raise UsageError(f"expected --{name} with --schedule {known}, got schedule {self.schedule}")
        if not 0 <= self.warmup < self.epochs:
            raise UsageError(f"expected a warmup shorter than the {self.epochs} epochs, got {self.warmup:g}")
        if self.schedule == "step":
            falls = (self.warmup, *self.falls, self.epochs)
            if not all(before < after for before, after in pairwise(falls)):
                raise UsageError(
                    f"expected milestones that rise, after the warmup and before the end at {self.epochs} epochs, got "
                    f"{', '.join(f'{fall:g}' for fall in self.falls)} with a warmup of {self.warmup:g}"
                )

    @property
    def falls(self) -> tuple[float, ...]:
        """The epochs, or parts of them, after which the rate of the schedule 'step' falls."""
        return tuple(place * self.epochs if place < 1 else place for place in self.milestones or MILESTONES)

    def check_teacher(self, there: bool) -> None:
        """Raise `UsageError` where the recipe has options for a teacher and there is none."""
        if not there and (unread := self.changed() & set(OF_TEACHER)):
            raise UsageError(f"expected --teacher FILE with --{min(unread)}, got no teacher")

    def changed(self) -> set[str]:
        """The names of the fields that are not at their defaults."""
        return {entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default}


def _said(name: str) -> str:
    return name.replace("_", " ")
