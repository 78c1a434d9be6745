"""Training of networks on labelled images."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics.classification import MulticlassAccuracy

from ldnq import curves, ranks, runtime, tensorboard, training_state
from ldnq.augmentation import Augmentation
from ldnq.errors import TrainingError, UsageError
from ldnq.evaluation import Accuracy, loss_and_top1
from ldnq.losses import divergence, objective, supervised
from ldnq.preprocessing import Preprocessing
from ldnq.progress import say, track
from ldnq.report.curves import write_chart
from ldnq.schedules import Schedule
from ldnq.soundness import LossWatch, first_unsound
from ldnq.switching import set_width
from ldnq.synchronized import average_statistics, synchronized
from ldnq.training_recipe import TrainingRecipe

CPU = torch.device("cpu")


def _nothing() -> None:
    pass


@dataclass
class Trainer:
    """One training run over images in memory; `state` is the file that carries it over an interruption, beside which
    curves and the best weights are written, `subject` says what is trained on what.

    `images` (n, 3, s, s) uint8 and `labels` (n,); `augmentation` gives the size that the network sees, which the
    images `held_out` have. `parameters` are groups of the optimizer, all of `module` otherwise. `before_step`, with
    gradients as they come, before they are cut, and `after_step` are called around every step of the optimizer.
    `test` measures a network on test images. At several `widths` a step takes the gradients of all, the narrower ones'
    by `supervision`; the network is left at the widest. Several processes share the images of every batch, each
    with batch norms of its own unless `sync_batchnorm`.
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
    parameters: list[dict[str, Any]] | None = None
    before_step: Callable[[], None] = _nothing
    after_step: Callable[[], None] = _nothing
    teacher: nn.Module | None = None
    held_out: tuple[Tensor, Tensor] | None = None
    test: Callable[[nn.Module], Accuracy | None] | None = None
    widths: Sequence[int] = ()
    supervision: str = "hard"
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.epoch = 0
        self.rows: list[curves.Row] = []
        self.best: dict[str, float] | None = None
        self.watch = LossWatch()
        self.steps = len(self.images) // recipe.batch_size
        if self.steps == 0:
            raise UsageError(f"expected at least {recipe.batch_size} images to train on, got {len(self.images)}")
        recipe.check_teacher(self.teacher is not None)
        self.module.to(self.fabric.device).to(memory_format=runtime.LAYOUT)
        if self.teacher is not None:
            self.teacher.to(self.fabric.device).to(memory_format=runtime.LAYOUT).eval().requires_grad_(False)
        self.optimizer = _optimizer(self.parameters or [{"params": list(self.module.parameters())}], recipe)
        self.schedule = Schedule(self.optimizer, recipe, self.steps)
        self.average = None
        if recipe.ema:
            self.average = AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)

    @property
    def network(self) -> nn.Module:
        """What is measured and kept: the average where there is one."""
        return self.average.module if self.average else self.module

    @property
    def best_file(self) -> Path:
        """The weights of the best epoch, written where images are held out or they are to be kept."""
        return self.state.with_name("best.pt")

    def resume(self) -> bool:
        """Go on from `state` where it exists; raises `CheckpointError` where it belongs to another run."""
        saved = ranks.agreed(lambda: training_state.read(self.state, CPU) if self.state.exists() else None)
        if saved is None:
            return False
        training_state.check_same(self.state, saved.get("run"), self._identity())
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        self.epoch, self.rows, self.best = saved["epoch"], saved["rows"], saved["best"]
        return True

    def run(self) -> None:
        """Train to the last epoch, and leave in `module` the weights that the recipe keeps."""
        forward = torch.compile(self.module) if self.compiled else self.module
        with runtime.deterministic(self.recipe.deterministic), synchronized(self.module, self.sync_batchnorm):
            for _ in track(range(self.epoch, self.recipe.epochs), "epochs"):
                row = self._checked_epoch(forward)
                self.epoch += 1
                self._finish_epoch(row)
        if self.recipe.keep == "best":
            best = ranks.agreed(lambda: training_state.read(self.best_file, CPU))
            self.module.load_state_dict(best["state_dict"])
        elif self.average:
            self.module.load_state_dict(self.average.module.state_dict())
        curves.write(self.state.with_name(curves.FILE), self.rows)
        write_chart(self.state.with_name("curves.svg"), self.rows)

    def _checked_epoch(self, forward: Callable[[Tensor], Tensor]) -> curves.Row:
        """What the training was like; raises `TrainingError` where nothing can come of it, before anything is saved."""
        try:
            row = self._train_epoch(forward)
            average_statistics(self.module, *([self.average.module] if self.average else []))
            if name := first_unsound(self.module):
                raise TrainingError(f"{name} is not finite after epoch {self.epoch + 1}")
            return row
        except TrainingError as error:
            kept = f"epoch {self.epoch} is kept in {self.state}" if self.epoch else "nothing was saved"
            raise TrainingError(f"{error}; {kept}: try a lower --lr with another --output") from error

    def _train_epoch(self, forward: Callable[[Tensor], Tensor]) -> curves.Row:
        # Seeded by epoch, so that an interrupted run continues exactly as it would have gone on.
        generator = torch.Generator().manual_seed(self.recipe.seed * 100_003 + self.epoch)
        torch.manual_seed(generator.initial_seed() + ranks.rank())
        order = torch.randperm(len(self.images), generator=generator)[: self.steps * self.recipe.batch_size]
        self.module.train()
        total, metric = 0.0, None
        for step, chosen in enumerate(track(order.view(self.steps, self.recipe.batch_size), "batches"), 1):
            own, weight = ranks.share_of_batch(len(chosen))
            batch = self.augmentation(self.images[chosen].to(self.fabric.device), generator)[own]
            batch = self.preprocessing.normalize(batch).contiguous(memory_format=runtime.LAYOUT)
            labels = self.labels[chosen[own]].to(self.fabric.device)
            self.optimizer.zero_grad()
            loss, outputs = self._gradients(forward, batch, labels, weight)
            ranks.sum_gradients(self.module.parameters(), loss)
            total += self.watch(loss, f"step {step} of {self.steps} of epoch {self.epoch + 1}")
            metric = metric or MulticlassAccuracy(outputs.shape[1], average="micro").to(self.fabric.device)
            metric.update(outputs, labels)
            self._step()
            rate = self.schedule.rate
            self.schedule.step()
        top1 = 100 * float(metric.compute()) if metric else 0.0
        return {"epoch": self.epoch + 1, "loss": total / self.steps, "top1": top1, "lr": rate}

    def _gradients(
        self, forward: Callable[[Tensor], Tensor], batch: Tensor, labels: Tensor, weight: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Add up those of one pass, or of one at every width, the widest first, times `weight`; returns the loss, in
        sum, and the first outputs. A pass has given back its memory before the next begins (Yu et al., arXiv
        1911.07346)."""
        total, first, targets = torch.zeros((), device=batch.device), None, None
        for width in sorted(self.widths, reverse=True) or [0]:
            set_width(self.module, width)
            with self.fabric.autocast():
                outputs = forward(batch)
                loss = self._loss(outputs, labels, batch) if targets is None else divergence(outputs, targets)
                loss = weight * loss
            self.fabric.backward(loss)
            total += loss.detach()
            first = outputs.detach() if first is None else first
            targets = supervised(self.supervision, first, outputs)
        set_width(self.module, max(self.widths, default=0))
        assert first is not None  # noqa: S101, for the type
        return total, first

    def _loss(self, outputs: Tensor, labels: Tensor, batch: Tensor) -> Tensor:
        targets = None
        if self.teacher is not None:
            with torch.no_grad():
                targets = self.teacher(batch)
        recipe = self.recipe
        return objective(outputs, labels, recipe.label_smoothing, targets, recipe.distillation, recipe.temperature)

    def _step(self) -> None:
        self.before_step()
        if self.recipe.clip:
            # Gradients that overflow are found by who scales them, or by the weights' check.
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=self.recipe.clip, error_if_nonfinite=False)
        # Where losses of 16-bit floats are scaled, a step whose gradients overflow is left out.
        self.fabric.strategy.optimizer_step(self.optimizer)
        self.after_step()
        if self.average:
            self.average.update_parameters(self.module)

    def _finish_epoch(self, row: curves.Row) -> None:
        """Measure what the epoch came to, and save everything."""
        if self.held_out:
            row |= self._on_held_out(*self.held_out)
        every = self.recipe.test_every
        if self.test and (self.epoch == self.recipe.epochs or (every and self.epoch % every == 0)):
            accuracy = self.test(self.network)
            row |= {"test_top1": accuracy.top1} if accuracy else {}
        self.rows.append(row)
        decisive = row.get("held_out_loss", row["loss"])
        self.schedule.end_epoch(decisive)
        if self.best is None or decisive < self.best["loss"]:
            self.best = {"epoch": self.epoch, "loss": decisive}
            if self.held_out or self.recipe.keep == "best":
                training_state.write(self.best_file, {**self.best, "state_dict": self.network.state_dict()})
        self._save()
        curves.write(self.state.with_name(curves.FILE), self.rows)
        curves.log(row)
        tensorboard.histograms(self.module, self.epoch)
        held_out = f", held out {row['held_out_top1']:.2f}%" if self.held_out else ""
        say(f"top-1 {row['top1']:.2f}%{held_out}, loss {row['loss']:.4f}")

    def _on_held_out(self, images: Tensor, labels: Tensor) -> curves.Row:
        """Loss, the mean over all widths, and accuracy at the widest."""
        found = []
        for width in sorted(self.widths) or [0]:
            set_width(self.network, width)
            batches = zip(images.split(self.recipe.batch_size), labels.split(self.recipe.batch_size))
            found.append(loss_and_top1(self.network, batches, self.preprocessing, self.fabric))
        losses, top1 = zip(*found)
        return {"held_out_loss": sum(losses) / len(losses), "held_out_top1": top1[-1]}

    def _parts(self) -> dict[str, Any]:
        """All that has a state to save, by name."""
        parts: dict[str, Any] = {"module": self.module, "optimizer": self.optimizer, "schedule": self.schedule}
        parts |= {"average": self.average} if self.average else {}
        return parts | {"precision": self.fabric.strategy.precision}

    def _identity(self) -> dict[str, Any]:
        return {"training": self.subject} | asdict(self.recipe)

    def _save(self) -> None:
        if not ranks.first():
            return
        state: dict[str, Any] = {"run": self._identity(), "epoch": self.epoch, "rows": self.rows, "best": self.best}
        training_state.write(self.state, state | {name: part.state_dict() for name, part in self._parts().items()})


def _optimizer(groups: list[dict[str, Any]], recipe: TrainingRecipe) -> torch.optim.Optimizer:
    lr, decay, momentum = recipe.lr, recipe.weight_decay, recipe.momentum
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr, (momentum, 0.999), weight_decay=decay)
    return torch.optim.SGD(groups, lr, momentum, weight_decay=decay, nesterov=momentum > 0)
