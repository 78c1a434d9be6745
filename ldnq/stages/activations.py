"""Activations on grids of integers, for runtimes that compute with them."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from ldnq.calibration import CalibrationImages
from ldnq.folding import fold_batch_norms
from ldnq.grid import Grid
from ldnq.progress import track
from ldnq.quantized import QuantizationState, QuantizedWeight
from ldnq.quantizers.activations import input_grid, points, trace, with_grids

log = logging.getLogger(__name__)

# Of a value, kept of every batch.
ENTRIES = 1 << 14
# The scale of what is always zero: biases after it are in its units.
NOTHING = 2.0**-10
# Of a bias in units of its scale: more is not exact in float32.
LARGEST = 1 << 24
# Steps of a bias whose weights are nothing beside it.
COUNTED = 1 << 16


@dataclass(frozen=True)
class ActivationRanges:
    """Batch norms folded and every activation rounded to one of 2^`bits` values, by the ranges of the calibration
    images (Nagel et al., arXiv 2106.08295, section 3.1).

    `ranges` is `least-squares`: of `fractions` of the observed range the one of least squared error, or `percentile`:
    from one end's `percentile` to the other's. Biases are rounded as runtimes do, in units of input times weight.
    """

    bits: int = 8
    ranges: str = "least-squares"
    fractions: int = 60
    percentile: float = 99.99

    @torch.no_grad()
    def __call__(
        self, state: QuantizationState, calibration: CalibrationImages, generator: torch.Generator
    ) -> QuantizationState:
        batches = list(calibration.batches())
        state.student, state.weights = fold_batch_norms(state.student, state.weights, batches[0])
        state.folded = True
        traced = trace(state.student)
        places = points(traced, batches[0][:2])
        observer = _Observer(traced, {name for name, source in places.items() if name == source})
        for batch in track(batches, "measuring activations"):
            observer.run(batch)
        own = {name: self._grid(observer.values(name)) for name in observer.names}
        state.grids = {name: own[source] for name, source in places.items()}
        student = with_grids(state.student, state.grids, state.weights)
        _round_biases(student, state)
        state.student = student
        log.info("%d activations on grids of %d values", len(state.grids), 2**self.bits)
        return state

    def _grid(self, values: Tensor) -> Grid:
        # A grid has zero on it: padding, and what is clipped.
        low, high = float(values.min().clamp(max=0)), float(values.max().clamp(min=0))
        if self.ranges == "percentile":
            order = values.sort().values
            cut = int((1 - self.percentile / 100) * (len(order) - 1))
            return self._between(min(0.0, float(order[cut])), max(0.0, float(order[len(order) - 1 - cut])))
        found = [self._between(low * share, high * share) for share in torch.linspace(0.2, 1, self.fractions).tolist()]
        return min(found, key=lambda grid: _squared_error(values, grid))

    def _between(self, low: float, high: float) -> Grid:
        most = 2**self.bits - 1
        scale = torch.tensor((high - low) / most if high > low else NOTHING).item()
        return Grid(scale, min(most, max(0, round(-low / scale))), self.bits)


class _Observer(fx.Interpreter):
    """Keeps a sample of the values called `names`, and their extremes."""

    def __init__(self, traced: fx.GraphModule, names: set[str]) -> None:
        super().__init__(traced)
        self.names = [node.name for node in traced.graph.nodes if node.name in names]
        self.kept: dict[str, list[Tensor]] = {name: [] for name in self.names}

    def run_node(self, n: fx.Node) -> Any:
        """The value, of which some entries are kept."""
        value = super().run_node(n)
        if n.name in self.kept:
            flat = value.detach().float().flatten()
            ends = torch.stack([flat.min(), flat.max()])
            # An odd step meets every channel and place of sizes that are even.
            self.kept[n.name].append(torch.cat([ends, flat[:: len(flat) // ENTRIES | 1]]).cpu())
        return value

    def values(self, name: str) -> Tensor:
        """The sample, flat."""
        return torch.cat(self.kept[name])


def _squared_error(values: Tensor, grid: Grid) -> float:
    low, high = grid.ends
    rounded = ((values / grid.scale).round() * grid.scale).clamp(low, high)
    return float((values - rounded).square().mean())


def _round_biases(student: fx.GraphModule, state: QuantizationState) -> None:
    """Biases of quantized layers in units of the scale of their input times those of their weights."""
    for name, weight in list(state.weights.items()):
        layer = student.get_submodule(name.rpartition(".")[0])
        grid = input_grid(student, name.rpartition(".")[0])
        if not name.endswith("weight") or grid is None or getattr(layer, "bias", None) is None:
            continue
        bias = layer.bias.cpu()
        if weight.scale.numel() == len(bias) and weight.codebook.num_levels % 2:
            weight = _without_traces(weight, bias, grid)
            state.weights[name] = weight
            layer.weight.copy_(weight.dequantize())
        unit = grid.bias_unit(weight.scale)
        steps = (bias / unit).round()
        layer.bias.copy_(torch.where(steps.abs() < LARGEST, steps * unit, bias))


def _without_traces(weight: QuantizedWeight, bias: Tensor, grid: Grid) -> QuantizedWeight:
    """Channels whose weights are nothing beside their bias become zeros, of a scale in which it can be counted."""
    traces = (bias / grid.bias_unit(weight.scale)).abs() >= LARGEST
    codes = torch.where(traces.view(-1, *[1] * (weight.codes.dim() - 1)), weight.codebook.num_levels // 2, weight.codes)
    scale = torch.where(traces, bias.abs() / (grid.scale * COUNTED), weight.scale)
    return replace(weight, codes=codes.to(torch.uint8), scale=scale)
