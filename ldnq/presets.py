"""Methods with their options filled in: the tuples of stages that a user calls by one name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ldnq.codebook import Codebook
from ldnq.config import RecipeConfig
from ldnq.registry import Registry
from ldnq.solvers import solvers
from ldnq.stages import Stage
from ldnq.stages.cascade import Cascade
from ldnq.stages.layerwise import Layerwise


@dataclass(frozen=True)
class Preset:
    """What a preset does in a line, the options of `RecipeConfig` that it fills in, and its stages."""

    summary: str
    defaults: Mapping[str, Any]
    stages: Callable[[RecipeConfig], tuple[Stage, ...]]


presets: Registry[Preset] = Registry("preset")


def fill_in(recipe: RecipeConfig) -> RecipeConfig:
    """`recipe` with every option that was left to the preset."""
    defaults = presets.get(recipe.preset).defaults
    return replace(recipe, **{name: value for name, value in defaults.items() if getattr(recipe, name) is None})


def stages(recipe: RecipeConfig) -> tuple[Stage, ...]:
    """The stages of a filled-in recipe."""
    return presets.get(recipe.preset).stages(recipe)


def _layerwise(recipe: RecipeConfig, *, asymmetric: bool) -> Layerwise:
    cascade = (
        Cascade(recipe.cascade_epochs, lr=recipe.cascade_lr) if recipe.training and recipe.cascade_epochs else None
    )
    return Layerwise(
        solver=solvers.get(recipe.solver)(),
        codebook=Codebook.power_of_two(recipe.kbits),
        per_channel=recipe.scale == "channel",
        quantize_bias=recipe.quantize_bias,
        skip=recipe.skip,
        keep_first_last=recipe.keep_first_last,
        cascade=cascade,
        asymmetric=asymmetric,
        views=recipe.views,
    )


presets.add(
    "paper",
    Preset(
        "L-DNQ as published: ADMM, one scale a layer, cascade update",
        {
            "solver": "admm",
            "scale": "layer",
            "views": 0,
            "cascade_epochs": Cascade.max_epochs,
            "cascade_lr": Cascade.lr,
        },
        lambda recipe: (_layerwise(recipe, asymmetric=False),),
    ),
)
presets.add(
    "fast",
    Preset(
        "no gradient step: asymmetric targets, coordinate descent, batch norm corrected after every layer",
        {"solver": "coordinate-descent", "scale": "layer", "views": 1, "cascade_epochs": 0, "cascade_lr": Cascade.lr},
        lambda recipe: (_layerwise(recipe, asymmetric=True),),
    ),
)
