"""Quantization-aware training: the network learns with its layers quantized."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldnq.calibration import CalibrationImages
from ldnq.graph import Layer, SkippedLayer, find_layers, forward
from ldnq.precisions import Precisions
from ldnq.quantized import LayerResult, QuantizationState
from ldnq.quantizers.any_precision import SwitchedTanh
from ldnq.quantizers.inputs import InputQuantizer, with_inputs
from ldnq.quantizers.methods import Method
from ldnq.quantizers.parametrized import Quantizer, parametrized
from ldnq.stages.selection import choose_layers
from ldnq.switching import SwitchedNorm, check_untied, set_width, with_layers, with_norms
from ldnq.wiring import Wiring

log = logging.getLogger(__name__)

ENDS = "first or last layer"


@dataclass(frozen=True)
class Pupil:
    """What is to be trained: the `parameters` of `module` in groups as an optimizer takes them, at `widths` if it has
    several, and what is to be done before and after its steps."""

    module: nn.Module
    parameters: list[dict[str, Any]]
    widths: tuple[int, ...]
    before_step: Callable[[], None]
    after_step: Callable[[], None]


@dataclass(frozen=True)
class QuantizedTraining:
    """Training with quantized weights and inputs of layers (Courbariaux et al., BinaryConnect, arXiv 1511.00363).

    `method` says what becomes of a layer, `fit` trains the pupil that it is given. `skip` are globs of layers that stay
    float, as the first and the last layer do with `keep_first_last`, and those that match a glob of `customary`, if
    there are any. With `step_quantized` the optimizer steps the quantized weights, not the float ones that they are
    computed from.
    """

    method: Method
    fit: Callable[[Pupil], None]
    skip: tuple[str, ...] = ()
    keep_first_last: bool = True
    step_quantized: bool = False
    customary: tuple[str, ...] = ()

    def __call__(
        self, state: QuantizationState, calibration: CalibrationImages, generator: torch.Generator
    ) -> QuantizationState:
        example = next(iter(calibration.batches()))
        layers, unfit = find_layers(state.student, example[:2])
        ends = ENDS if self.keep_first_last else ""
        layers, left_out = choose_layers(layers, self.skip, ends, self.customary)
        inputs = self._round_inputs(state.student, layers, example)
        widths = self.method.widths
        if widths:
            check_untied(state.student)
            with_norms(state.student, widths)
            if len(widths) > 1 and not any(isinstance(part, SwitchedNorm) for part in state.student.modules()):
                log.warning("the network has no batch norms: nothing is kept for each width but scales")
        made = {layer.weight_name: self.method.weights(state.student.get_submodule(layer.name)) for layer in layers}
        quantizers = {name: quantizer for name, quantizer in made.items() if quantizer is not None}
        state.student.requires_grad_(True)
        with parametrized(state, quantizers) as latents:
            self.fit(self._pupil(state.student, quantizers, latents, inputs))
            set_width(state.student.eval(), max(widths, default=0))
            _note_floats(state.teacher, quantizers, latents)
            switched = {name: it for name, it in quantizers.items() if isinstance(it, SwitchedTanh)}
            scales = {name: it.scales(latents[name]) for name, it in switched.items()}
        if switched:
            state.precisions = Precisions("bits", widths, tuple(switched))
            with_layers(state.student, state.precisions, scales)
        state.inputs = {name: quantizer.spec() for name, quantizer in inputs.items()}
        state.results = [LayerResult(layer) for layer in layers if layer.weight_name in state.weights]
        floats = [layer for layer in layers if layer.weight_name not in {*state.weights, *switched}]
        reason = "weights of more than 8 bits are kept as floats"
        state.skipped = [*unfit, *left_out, *(SkippedLayer(it.name, it.kind, it.shape, reason) for it in floats)]
        return state

    def _round_inputs(self, student: nn.Module, layers: list[Layer], example: Tensor) -> dict[str, InputQuantizer]:
        """Let the `layers` round their inputs, beginning with what suits those of the `example`."""
        wiring, found = Wiring(student), {}
        for layer in layers:
            normalized = wiring.batch_norm_before(layer.name) is not None
            quantizer = self.method.inputs(student.get_submodule(layer.name), normalized)
            if quantizer is not None:
                found[layer.name] = quantizer
        with_inputs(student, found).eval()
        hooks = [entry.register_forward_pre_hook(_start) for entry in found.values()]
        try:
            with torch.no_grad():
                forward(student, example)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _pupil(
        self,
        student: nn.Module,
        quantizers: Mapping[str, Quantizer],
        latents: Mapping[str, nn.Parameter],
        inputs: Mapping[str, InputQuantizer],
    ) -> Pupil:
        owners = (*quantizers.values(), *inputs.values())
        steps = [parameter for owner in owners for parameter in owner.parameters(recurse=False)]
        rest = [parameter for parameter in student.parameters() if parameter not in set(steps)]
        # A step that decays is a grid that shrinks.
        groups = [{"params": rest}, *([{"params": steps, "weight_decay": 0.0}] if steps else [])]
        pairs = [(quantizers[name], latent) for name, latent in latents.items()]
        before = partial(_quantize, pairs) if self.step_quantized else _nothing
        return Pupil(student, groups, self.method.widths, before, partial(_clamp, pairs))


def _start(quantizer: InputQuantizer, arguments: tuple[Tensor, Any]) -> None:
    quantizer.start(arguments[0])


@torch.no_grad()
def _quantize(pairs: list[tuple[Quantizer, nn.Parameter]]) -> None:
    for quantizer, latent in pairs:
        latent.copy_(quantizer.settled(latent))


@torch.no_grad()
def _clamp(pairs: list[tuple[Quantizer, nn.Parameter]]) -> None:
    for quantizer, latent in pairs:
        quantizer.clamp(latent)


def _nothing() -> None:
    pass


@torch.no_grad()
def _note_floats(teacher: nn.Module, quantizers: Mapping[str, Quantizer], latents: Mapping[str, nn.Parameter]) -> None:
    """Let the weights of the `teacher` be those that the student's were rounded from: what a report compares."""
    for name, latent in latents.items():
        teacher.get_parameter(name).copy_(quantizers[name].unrounded(latent))
