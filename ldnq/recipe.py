"""A recipe carried out: its stages, on a network and its calibration images."""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ldnq.calibration import CalibrationImages
from ldnq.config import RecipeConfig
from ldnq.errors import NetworkError, UsageError, shorten
from ldnq.nesting import Nest
from ldnq.precisions import Precisions
from ldnq.preparation import copied, start
from ldnq.presets import stages
from ldnq.progress import headline
from ldnq.quantized import Journal, QuantizationState, QuantizedWeight
from ldnq.stages import Stage
from ldnq.switching import SwitchedNorm, check_untied, set_width, with_biases, with_layers, with_norms, without_widths

log = logging.getLogger(__name__)

# Of the calibration images, where whole networks learn from the rest.
HELD_OUT = 0.1


def apply_recipe(
    module: nn.Module,
    images: CalibrationImages,
    recipe: RecipeConfig,
    seed: int,
    mixed_precision: bool = False,
    journal: Journal | None = None,
    nests: Mapping[str, Nest] | None = None,
) -> QuantizationState:
    """Run the stages of a filled-in and settled `recipe` on a copy of `module`, which is left as it is; from where the
    `journal` is, if there is one. Codes fit into the `nests` of weights by their names."""
    generator = torch.Generator().manual_seed(seed)
    if recipe.training and (recipe.block_steps or recipe.distillation_steps):
        images = images.set_apart(HELD_OUT, generator)
    return apply_stages(module, images, stages(recipe, mixed_precision), generator, journal, nests)


def apply_nested(
    module: nn.Module,
    images: CalibrationImages,
    recipe: RecipeConfig,
    kbits: Iterable[int],
    seed: int,
    mixed_precision: bool = False,
    journals: Callable[[int], Journal | None] = lambda kbits: None,
) -> dict[int, QuantizationState]:
    """As `apply_recipe`, with each of several numbers of levels, the fewest first and as by itself, so that the codes
    of the last state, of the most levels, merge (`ldnq.nesting`) into those of all others. What else they differ in is
    small: scales, batch norms, biases.

    Raises `UsageError` where the recipe would leave more to each than that.
    """
    if recipe.abits:
        raise UsageError(f"expected float activations of nested codebooks, got --abits {recipe.abits}")
    if recipe.training and recipe.cascade_epochs and (recipe.skip or recipe.keep_first_last):
        raise UsageError("the cascade update would train layers that stay float anew for each codebook: --no-training")
    check_untied(module)
    steps = recipe.cascade_epochs, recipe.block_steps, recipe.distillation_steps
    if recipe.training and any(steps) and (others := _other_parameters(module)):
        raise UsageError(f"gradient steps would train {shorten(others)} anew for each codebook: --no-training")
    kbits = sorted(set(kbits))
    states: dict[int, QuantizationState] = {}
    nests: dict[str, Nest] = {}
    for levels in kbits:
        headline(f"nested codebooks: {levels} levels")
        settled = replace(recipe, method="ldnq", kbits=levels)
        state = apply_recipe(module, images, settled, seed, mixed_precision, journals(levels), nests)
        nests = {name: _nest(weight, nests.get(name), kbits[-1]) for name, weight in state.weights.items()}
        states[levels] = state
    return states


def _nest(weight: QuantizedWeight, nest: Nest | None, most: int) -> Nest:
    """What `nest` is when `weight` is settled, of `most` levels or as many as the weight itself has."""
    levels = weight.codebook.num_levels
    if nest is None:
        return Nest.around(weight.codes, levels, max(levels, most))
    return nest.narrowed(weight.codes, levels)


def apply_stages(
    module: nn.Module,
    images: CalibrationImages,
    chosen: Iterable[Stage],
    generator: torch.Generator,
    journal: Journal | None = None,
    nests: Mapping[str, Nest] | None = None,
) -> QuantizationState:
    """Run the `chosen` stages on a copy of `module`, which is left as it is."""
    state = start(module)
    state.journal, state.nests = journal or state.journal, nests or state.nests
    reached = state.journal.restore(state, generator)
    if state.results:
        log.info("going on after layer %d, %s", len(state.results), state.results[-1].layer.name)
    chosen = list(chosen)
    for number, stage in enumerate(chosen):
        if number >= reached:
            headline(f"stage {number + 1} of {len(chosen)}: {type(stage).__module__.rpartition('.')[2]}")
            state.journal.begin(number, state, generator)
            state = stage(state, images, generator)
    # Another memory layout rounds differently: what is measured and saved has the one that it will be loaded in.
    state.student = copied(state.student, torch.contiguous_format).requires_grad_(False)
    return state


def _other_parameters(module: nn.Module) -> list[str]:
    """Of what has no codes, biases or batch norm's factors."""
    kept = (nn.Conv2d, nn.Linear, _BatchNorm)
    parts = [(name, part) for name, part in module.named_modules() if not isinstance(part, kept)]
    return [name for name, part in parts if any(True for _ in part.parameters(recurse=False))]


def joined(states: Mapping[int, QuantizationState]) -> QuantizationState:
    """Of nested `states` by their numbers of levels one whose student runs at all of them, at first at the most.

    Raises `NetworkError` where they differ in more than scales, batch norms and biases.
    """
    widths = tuple(sorted(states))
    widest = states[widths[-1]]
    scales = {name: torch.stack([states[width].weights[name].scale for width in widths]) for name in widest.weights}
    student = with_norms(copy.deepcopy(widest.student), widths)
    for name, part in student.named_modules():
        if isinstance(part, SwitchedNorm):
            for width in widths:
                part.of(width).load_state_dict(states[width].student.get_submodule(name).state_dict())
    precisions = Precisions("kbits", widths, tuple(widest.weights))
    with_layers(student, precisions, scales)
    with_biases(student, widths, _biases(widest.student, [states[width].student for width in widths]))
    for width in widths:
        set_width(student, width)
        found, expected = without_widths(copy.deepcopy(student)).state_dict(), states[width].student.state_dict()
        if different := [name for name, tensor in found.items() if not tensor.equal(expected[name])]:
            raise NetworkError(
                f"{shorten(different)} differ between {widths} levels, where only scales, batch norms and biases may"
            )
    return replace(widest, student=student, precisions=precisions)


def _biases(network: nn.Module, students: list[nn.Module]) -> dict[str, torch.Tensor]:
    """Those of the layers of `network` that are not the same in all `students`, by the layers' names."""
    names = [name for name, part in network.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    states = [student.state_dict() for student in students]
    found = {name: [state[f"{name}.bias"] for state in states] for name in names if f"{name}.bias" in states[0]}
    return {name: torch.stack(some) for name, some in found.items() if not all(bias.equal(some[0]) for bias in some)}
