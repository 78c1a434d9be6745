"""Layer after layer in execution order: moments of its inputs, a problem, a solver, the weights written and frozen."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.errors import NetworkError, UsageError, shorten
from ldnq.graph import Layer, SkippedLayer, find_layers
from ldnq.moments import Moments, gather_moments
from ldnq.problem import LayerProblem, LayerSolution, Solver
from ldnq.progress import track
from ldnq.quantized import LayerResult, QuantizationState, QuantizedWeight
from ldnq.stages.cascade import Cascade

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layerwise:
    """Layer-wise quantization, L-DNQ (AAAI 2019), Algorithm 1: each layer by `solver` on the Gram matrix of its inputs
    in the partly quantized network, then `cascade` if there is one.

    `skip` are globs of layer names that stay float; `keep_first_last` adds the first and the last layer.
    `quantize_bias` puts the bias of linear layers on the same codebook and scale, as one more weight.
    """

    solver: Solver
    codebook: Codebook
    per_channel: bool = False
    quantize_bias: bool = False
    skip: tuple[str, ...] = ()
    keep_first_last: bool = False
    cascade: Cascade | None = None

    def __call__(
        self, state: QuantizationState, calibration: CalibrationImages, generator: torch.Generator
    ) -> QuantizationState:
        found, unfit = find_layers(state.student, next(iter(calibration.batches()))[:2])
        layers, skipped = self._choose(found)
        state.skipped = [*unfit, *skipped]
        for position, layer in enumerate(track(layers, "quantizing layers"), 1):
            result = self._quantize(state, layer, calibration)
            state.results.append(result)
            log.info(
                "layer %d of %d, %s %s: relative error %.4f",
                position, len(layers), layer.name, "x".join(map(str, layer.shape)), result.relative_error,
            )  # fmt: skip
            if self.cascade:
                state = self.cascade(state, calibration, generator)
        return state

    def _choose(self, layers: Sequence[Layer]) -> tuple[list[Layer], list[SkippedLayer]]:
        """Layers to quantize, and those that the options leave out."""
        for pattern in self.skip:
            if not any(fnmatchcase(layer.name, pattern) for layer in layers):
                raise UsageError(
                    f"--skip {pattern} matches none of the layers: {shorten([layer.name for layer in layers])}"
                )
        ends = {layers[0].name, layers[-1].name} if layers and self.keep_first_last else set()
        chosen, left_out = [], []
        for layer in layers:
            pattern = next((pattern for pattern in self.skip if fnmatchcase(layer.name, pattern)), None)
            if pattern is not None:
                left_out.append(SkippedLayer(layer.name, layer.kind, layer.shape, f"--skip {pattern}"))
            elif layer.name in ends:
                left_out.append(SkippedLayer(layer.name, layer.kind, layer.shape, "--keep-first-last"))
            else:
                chosen.append(layer)
        if not chosen:
            reason = f"all {len(layers)} are left out" if layers else "found none"
            raise NetworkError(f"expected at least one Conv2d or Linear layer to quantize: {reason}")
        return chosen, left_out

    def _quantize(self, state: QuantizationState, layer: Layer, calibration: CalibrationImages) -> LayerResult:
        started = time.perf_counter()
        moments = gather_moments(state.student, state.teacher, layer, calibration.batches())
        _remark(layer, moments)
        weight = state.student.get_parameter(layer.weight_name)
        target = layer.to_matrix(weight.detach().double())
        gram = moments.gram
        with_bias = self._with_bias(state, layer)
        if with_bias:
            bias = state.student.get_parameter(layer.bias_name).detach().double()
            target = torch.cat([target, bias.view(1, -1, 1)], 2)
            gram = moments.gram_with_ones
        solution = self.solver(LayerProblem(target, gram, self.codebook, self.per_channel))
        weights = self._split(layer, solution, with_bias)
        for name, quantized in weights.items():
            state.write(name, quantized)
        return _result(layer, solution, weights[layer.weight_name], moments, time.perf_counter() - started)

    def _with_bias(self, state: QuantizationState, layer: Layer) -> bool:
        return (
            self.quantize_bias and layer.kind == "linear" and state.student.get_submodule(layer.name).bias is not None
        )

    def _split(self, layer: Layer, solution: LayerSolution, with_bias: bool) -> dict[str, QuantizedWeight]:
        """The solution as parameters: the weight, and the bias where it was the last column."""
        d = solution.codes.shape[2] - with_bias
        weight = layer.to_weight(solution.codes[..., :d].contiguous())
        weights = {layer.weight_name: QuantizedWeight(weight, solution.scale, self.codebook)}
        if with_bias:
            weights[layer.bias_name] = QuantizedWeight(solution.codes[..., d].flatten(), solution.scale, self.codebook)
        return weights


def _remark(layer: Layer, moments: Moments) -> None:
    """Log what makes the Gram matrix singular; the solvers cope."""
    if moments.dead_inputs:
        log.info("%s: %d of %d inputs are always zero", layer.name, moments.dead_inputs, moments.mean.numel())
    if moments.positions < moments.gram.shape[-1]:
        log.info(
            "%s: %d positions for %d inputs leave its Gram matrix singular: more calibration images would help",
            layer.name,
            moments.positions,
            moments.gram.shape[-1],
        )


def _result(
    layer: Layer, solution: LayerSolution, weight: QuantizedWeight, moments: Moments, seconds: float
) -> LayerResult:
    return LayerResult(
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        num_levels=weight.codebook.num_levels,
        scale_min=float(weight.scale.min()),
        scale_max=float(weight.scale.max()),
        zero_fraction=weight.zero_fraction,
        relative_error=moments.relative_error(layer.to_matrix(weight.dequantize().double())),
        iterations=len(solution.errors) - 1,
        seconds=seconds,
    )
