"""Levels of every layer under a budget of bits: what does the least harm, as an integer program."""

import math
from collections.abc import Sequence
from dataclasses import replace
from glob import escape
from itertools import accumulate

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from ldnq.calibration import CalibrationImages
from ldnq.config import AUTO, KBITS, RecipeConfig
from ldnq.errors import UsageError
from ldnq.graph import Layer
from ldnq.preparation import start
from ldnq.presets import layerwise
from ldnq.sensitivity import Sensitivity, measure_sensitivities
from ldnq.stages.layerwise import last_match


def allocate(errors: Sequence[Sequence[float]], bits: Sequence[Sequence[float]], budget: float) -> list[int]:
    """For each layer the position of one of its choices: those of the least sum of `errors` whose `bits` add up to
    `budget` at most, a multiple-choice knapsack. `errors[layer][choice]` and `bits[layer][choice]` are not negative.

    Raises `UsageError` where even the smallest choices are too large.

    >>> allocate([[9.0, 1.0], [5.0, 4.0]], [[10, 20], [10, 20]], 30)
    [1, 0]
    """
    least = sum(map(min, bits))
    if least > budget:
        needed = math.ceil(1e4 * least) / 1e4
        raise UsageError(f"expected a target of at least {needed:.4f} bits, with the fewest levels, got {budget:g}")
    costs, sizes = np.concatenate(errors), np.concatenate(bits)
    ends = list(accumulate(map(len, bits)))
    one_each = np.zeros((len(bits), len(sizes)))
    for row, end, count in zip(one_each, ends, map(len, bits)):
        row[end - count : end] = 1
    # The program's tolerances are absolute: costs and sizes in units of what matters.
    unit = sum(map(min, errors)) or costs.max() or 1.0
    solution = milp(
        costs / unit,
        integrality=np.ones_like(costs),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes / budget, -np.inf, 1)],
        options={"mip_rel_gap": 0},
    )
    assert solution.success, solution.message  # noqa: S101, the smallest choices are a solution
    return [int(part.argmax()) for part in np.split(solution.x, ends[:-1])]


def choose_levels(found: Sequence[Sequence[Sensitivity]], target_bits: float) -> dict[str, int]:
    """The number of levels of each layer, by its name, of those tried: `target_bits` a weight on average, at most.

    Divergences of single layers add up, more or less: their sum is what is kept small.
    """
    weights = sum(trials[0].weights for trials in found)
    positions = allocate(
        [[trial.divergence for trial in trials] for trials in found],
        [[trial.bits / weights for trial in trials] for trials in found],
        target_bits,
    )
    return {trials[0].layer.name: trials[position].num_levels for trials, position in zip(found, positions)}


def settle_levels(
    module: nn.Module, images: CalibrationImages, recipe: RecipeConfig, seed: int
) -> tuple[RecipeConfig, list[Sensitivity]]:
    """A filled-in `recipe` with a number of levels for every layer of `module`, and the sensitivities that decided
    where it leaves the choice to us; layers for which it names one keep that."""
    if recipe.kbits != AUTO:
        return recipe, []

    def choices(layer: Layer) -> Sequence[int]:
        named = last_match(recipe.kbits_for, layer.name, None)
        return [named] if named else KBITS

    numbered = replace(recipe, kbits=KBITS[0], target_bits=None)
    stage = replace(layerwise(numbered), cascade=None)
    generator = torch.Generator().manual_seed(seed)
    found = list(measure_sensitivities(start(module), images, stage, choices, generator))
    chosen = choose_levels(found, recipe.target_bits or 0.0)
    settled = replace(numbered, kbits_for={escape(name): num_levels for name, num_levels in chosen.items()})
    return settled, [trial for trials in found for trial in trials]
