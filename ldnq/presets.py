"""Methods with their options filled in: what a user calls by one name, and the stages it stands for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ldnq.codebook import Codebook
from ldnq.config import RecipeConfig
from ldnq.registry import Registry
from ldnq.solvers import solvers
from ldnq.stages import Stage
from ldnq.stages.activations import ActivationRanges
from ldnq.stages.blocks import BlockReconstruction
from ldnq.stages.cascade import Cascade
from ldnq.stages.distillation import Distillation
from ldnq.stages.layerwise import Layerwise
from ldnq.stages.training import QuantizedTraining
from ldnq.stages.widths import WidthCalibration


@dataclass(frozen=True)
class Preset:
    """What a preset does in a line, and the options of `RecipeConfig` that it fills in.

    `asymmetric` is that of the layerwise stage: the one choice that has no option of its own.
    """

    summary: str
    asymmetric: bool
    defaults: Mapping[str, Any]


# In the order in which they are run, the cascade within the layer-wise stage; the last two by themselves.
STAGES: tuple[type[Stage], ...] = (
    Layerwise,
    Cascade,
    BlockReconstruction,
    Distillation,
    ActivationRanges,
    QuantizedTraining,
    WidthCalibration,
)

# With asymmetric targets.
COUPLING = 0.7

presets: Registry[Preset] = Registry("preset")
presets.add(
    "paper",
    Preset(
        "L-DNQ as published: ADMM, one scale a layer, cascade update",
        asymmetric=False,
        defaults={
            "solver": "admm",
            "scale": "layer",
            "views": 0,
            "cascade_epochs": Cascade.max_epochs,
            "cascade_lr": Cascade.lr,
            "block_steps": 0,
            "distillation_steps": 0,
        },
    ),
)
ASYMMETRIC = {
    "solver": "coordinate-descent",
    "scale": "layer",
    "views": 1,
    "cascade_epochs": 0,
    "cascade_lr": Cascade.lr,
    "block_steps": 0,
}
presets.add(
    "fast",
    Preset(
        "no gradient step: asymmetric targets, coordinate descent, batch norm corrected after every layer",
        asymmetric=True,
        defaults=ASYMMETRIC | {"views": None, "distillation_steps": 0},
    ),
)
presets.add(
    "balanced",
    Preset(
        "fast, then a short distillation of the whole network",
        asymmetric=True,
        defaults=ASYMMETRIC | {"distillation_steps": 300},
    ),
)
presets.add(
    "best",
    Preset(
        "fast, then a long distillation of the whole network",
        asymmetric=True,
        defaults=ASYMMETRIC | {"distillation_steps": 1200},
    ),
)


def fill_in(recipe: RecipeConfig) -> RecipeConfig:
    """`recipe` with every option that was left to the preset."""
    defaults = presets.get(recipe.preset).defaults
    return replace(recipe, **{name: value for name, value in defaults.items() if getattr(recipe, name) is None})


def stages(recipe: RecipeConfig, mixed_precision: bool = False) -> tuple[Stage, ...]:
    """The stages of a filled-in and settled recipe; `mixed_precision` is for the gradient steps of whole networks."""
    chosen: list[Stage] = [layerwise(recipe)]
    if recipe.training and recipe.block_steps:
        chosen.append(BlockReconstruction(recipe.block_steps, mixed_precision=mixed_precision))
    if recipe.training and recipe.distillation_steps:
        chosen.append(Distillation(recipe.distillation_steps, mixed_precision=mixed_precision))
    if recipe.abits:
        chosen.append(ActivationRanges(recipe.abits, recipe.ranges))
    return tuple(chosen)


def layerwise(recipe: RecipeConfig) -> Layerwise:
    """The first stage of a filled-in recipe with a number of levels."""
    asymmetric = presets.get(recipe.preset).asymmetric
    return Layerwise(
        solver=solvers.get(str(recipe.solver))(),
        codebook=Codebook.power_of_two(_one(recipe)),
        codebooks={pattern: Codebook.power_of_two(kbits) for pattern, kbits in recipe.kbits_for.items()},
        per_channel=recipe.scale == "channel",
        quantize_bias=recipe.quantize_bias,
        skip=recipe.skip,
        keep_first_last=recipe.keep_first_last,
        cascade=_cascade(recipe),
        asymmetric=asymmetric,
        views=recipe.views,
        gram_samples=recipe.gram_samples or math.inf,
        coupling=COUPLING if asymmetric else 0.0,
    )


def _cascade(recipe: RecipeConfig) -> Cascade | None:
    if not (recipe.training and recipe.cascade_epochs):
        return None
    return Cascade(recipe.cascade_epochs, lr=recipe.cascade_lr or Cascade.lr)


def _one(recipe: RecipeConfig) -> int:
    assert isinstance(recipe.kbits, int), "settled"  # noqa: S101, for the type
    return recipe.kbits
