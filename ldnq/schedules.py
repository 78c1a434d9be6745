"""Learning rates over the steps of a training."""

import warnings
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from ldnq.training_recipe import TrainingRecipe

# Of a one-cycle schedule without a warmup of its own: the share of the steps in which the rate rises.
RISE = 0.3


class Schedule:
    """Moves the rates of `optimizer`, each group's from its own highest, as `recipe` says in `steps` an epoch."""

    def __init__(self, optimizer: Optimizer, recipe: TrainingRecipe, steps: int) -> None:
        self.optimizer = optimizer
        self.warmup = round(recipe.warmup * steps)
        self.by_step = _by_step(optimizer, recipe, steps, self.warmup)
        self.by_loss = None
        if recipe.schedule == "plateau":
            self.by_loss = ReduceLROnPlateau(optimizer, factor=recipe.gamma, patience=recipe.patience)

    @property
    def rate(self) -> float:
        """The rate of the next step, of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """After a step of the optimizer."""
        with warnings.catch_warnings():
            # A first step that was skipped, because its 16-bit gradients overflow, torch thinks forgotten.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.by_step.step()

    def end_epoch(self, loss: float) -> None:
        """After an epoch at whose end there was this `loss`, on images held out where there are any."""
        if self.by_loss and self.by_step.last_epoch >= self.warmup:
            self.by_loss.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from."""
        return {"by_step": self.by_step.state_dict(), "by_loss": self.by_loss and self.by_loss.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.by_step.load_state_dict(state["by_step"])
        if self.by_loss:
            self.by_loss.load_state_dict(state["by_loss"])


def _by_step(optimizer: Optimizer, recipe: TrainingRecipe, steps: int, warmup: int) -> LRScheduler:
    total = recipe.epochs * steps
    if recipe.schedule == "one-cycle":
        # torch counts the step before the first one in.
        rise = (min(warmup, total - 2) + 1) / total if warmup and total > 2 else RISE
        rates = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, rates, total, pct_start=rise, cycle_momentum=False)
    if not warmup:
        return _after_warmup(optimizer, recipe, steps, 0)
    rising = LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rising, _after_warmup(optimizer, recipe, steps, warmup)], [warmup])


def _after_warmup(optimizer: Optimizer, recipe: TrainingRecipe, steps: int, warmup: int) -> LRScheduler:
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, recipe.epochs * steps - warmup)
    if recipe.schedule == "step":
        return MultiStepLR(optimizer, [round(fall * steps) - warmup for fall in recipe.falls], recipe.gamma)
    return ConstantLR(optimizer, 1.0)
