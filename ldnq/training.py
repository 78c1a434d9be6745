"""Training of float baselines on labelled images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ldnq import tensorboard
from ldnq.augmentation import Augmentation
from ldnq.errors import CheckpointError, TrainingError, UsageError
from ldnq.files import replacing
from ldnq.preprocessing import Preprocessing
from ldnq.progress import say, track
from ldnq.soundness import LossWatch, first_unsound

SCHEDULES = ("one-cycle", "cosine")


@dataclass(frozen=True)
class TrainingRecipe:
    """SGD with Nesterov momentum 0.9 on the cross-entropy, the rate moved after every step by `schedule`."""

    epochs: int = 40
    batch_size: int = 128
    lr: float = 0.2
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f"expected a schedule of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.epochs < 1 or self.batch_size < 2:
            raise UsageError(
                f"expected at least 1 epoch and batches of at least 2, got {self.epochs} and {self.batch_size}"
            )
        if not self.lr > 0:
            raise UsageError(f"expected a positive learning rate, got {self.lr}")


@dataclass
class Trainer:
    """One training run over images in memory; `state` is the file that carries it over an interruption, `subject` says
    what is trained on what.

    `images` (n, 3, s, s) uint8 and `labels` (n,); `augmentation` gives the size that the network sees.
    """

    module: nn.Module
    images: Tensor
    labels: Tensor
    preprocessing: Preprocessing
    augmentation: Augmentation
    recipe: TrainingRecipe
    fabric: Fabric
    state: Path
    subject: str
    compiled: bool = False

    def __post_init__(self) -> None:
        self.epoch = 0
        self.watch = LossWatch()
        self.steps = len(self.images) // self.recipe.batch_size
        if self.steps == 0:
            raise UsageError(f"expected at least {self.recipe.batch_size} images to train on, got {len(self.images)}")
        self.module.to(self.fabric.device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.module.parameters(), self.recipe.lr, 0.9, weight_decay=self.recipe.weight_decay, nesterov=True
        )
        self.schedule = _schedule(self.optimizer, self.recipe, self.steps)

    def resume(self) -> bool:
        """Go on from `state` where it exists; raises `CheckpointError` where it belongs to another run."""
        if not self.state.exists():
            return False
        try:
            saved = torch.load(self.state, map_location=self.fabric.device, weights_only=True)
            found = saved["subject"], saved["recipe"]
        except Exception as error:  # damaged files make torch fail in many ways
            raise CheckpointError(f"{self.state} is damaged: remove it, or use another --output") from error
        if found != (self.subject, repr(self.recipe)):
            theirs, ours = next(pair for pair in zip(found, (self.subject, repr(self.recipe))) if pair[0] != pair[1])
            raise CheckpointError(f"{self.state} is of {theirs}, not of {ours}: use another --output")
        self.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.epoch = saved["epoch"]
        return True

    def run(self) -> None:
        """Train to the last epoch."""
        forward = torch.compile(self.module) if self.compiled else self.module
        for epoch in track(range(self.epoch, self.recipe.epochs), "epochs"):
            loss = self._checked_epoch(forward)
            self.epoch = epoch + 1
            self._save()
            say(f"loss {loss:.4f}")
            tensorboard.scalar("train/loss", loss, self.epoch)
            tensorboard.scalar("train/learning rate", self.schedule.get_last_lr()[0], self.epoch)
            tensorboard.histograms(self.module, self.epoch)

    def _checked_epoch(self, forward: Callable[[Tensor], Tensor]) -> float:
        """The mean loss; raises `TrainingError` where nothing can come of the training, before anything is saved."""
        try:
            loss = self._train_epoch(forward)
            if name := first_unsound(self.module):
                raise TrainingError(f"{name} is not finite after epoch {self.epoch + 1}")
            return loss
        except TrainingError as error:
            kept = f"epoch {self.epoch} is kept in {self.state}" if self.epoch else "nothing was saved"
            raise TrainingError(f"{error}; {kept}: try a lower --lr with another --output") from error

    def _train_epoch(self, forward: Callable[[Tensor], Tensor]) -> float:
        # Seeded by epoch, so that an interrupted run continues exactly as it would have gone on.
        generator = torch.Generator().manual_seed(self.recipe.seed * 100_003 + self.epoch)
        torch.manual_seed(generator.initial_seed())
        order = torch.randperm(len(self.images), generator=generator)[: self.steps * self.recipe.batch_size]
        self.module.train()
        total = 0.0
        for step, chosen in enumerate(track(order.view(self.steps, self.recipe.batch_size), "batches"), 1):
            batch = self.augmentation(self.images[chosen].to(self.fabric.device), generator)
            batch = self.preprocessing.normalize(batch).contiguous(memory_format=torch.channels_last)
            with self.fabric.autocast():
                loss = F.cross_entropy(forward(batch), self.labels[chosen].to(self.fabric.device))
            total += self.watch(loss, f"step {step} of {self.steps} of epoch {self.epoch + 1}")
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            self.optimizer.step()
            self.schedule.step()
        return total / self.steps

    def _save(self) -> None:
        with replacing(self.state) as temporary:
            torch.save(
                {
                    "subject": self.subject,
                    "recipe": repr(self.recipe),
                    "epoch": self.epoch,
                    "module": self.module.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "schedule": self.schedule.state_dict(),
                },
                temporary,
            )


def _schedule(optimizer: torch.optim.Optimizer, recipe: TrainingRecipe, steps: int) -> LRScheduler:
    total = recipe.epochs * steps
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total, cycle_momentum=False)
