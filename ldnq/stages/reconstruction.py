"""One layer by itself: its problem, and the solution put into the student."""

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldnq import ranks
from ldnq.codebook import Bounds, Codebook
from ldnq.graph import Layer
from ldnq.joints import Receiver
from ldnq.moments import Moments
from ldnq.problem import LayerProblem, LayerSolution, Solver
from ldnq.quantized import LayerResult, QuantizationState, QuantizedWeight


@dataclass(frozen=True)
class Reconstruction:
    """What is known of a `layer` before its codebook is: it can be solved again and again, with one codebook after the
    other.

    `target` (groups, rows, d) are the weights to approach, with the bias as their last column if `with_bias`, and
    `gram` the second moments of their inputs; `moments` are all, less their means where a `receiver` takes up the
    offset; `raw` those with them. `seconds` were spent on finding these.
    """

    layer: Layer
    target: Tensor
    gram: Tensor
    moments: Moments
    raw: Moments
    receiver: Receiver | None
    with_bias: bool
    per_channel: bool
    sensitivity: Tensor | None
    seconds: float

    def __call__(self, solver: Solver, codebook: Codebook, state: QuantizationState) -> LayerResult:
        """Solve, write the weights into the student, and let the receiver take what is left."""
        started = time.perf_counter()
        free_scales = self.receiver is not None and self.receiver.takes_gain
        per_channel = self.per_channel or free_scales
        bounds = self._bounds(codebook, state)
        problem = LayerProblem(self.target, self.gram, codebook, per_channel, self.sensitivity, bounds)
        solution, gain = self._shared(problem, self._agreed(solver(problem)))
        weights = self._split(solution, codebook)
        for name, quantized in weights.items():
            state.write(name, quantized)
        matrix = self.layer.to_matrix(weights[self.layer.weight_name].dequantize().double()).to(self.gram.device)
        if self.receiver:
            corrections = (gain, matrix @ self.raw.mean, self.raw.target_mean)
            self.receiver.take(*(entry.flatten() for entry in corrections))
        error = self.moments.relative_error(gain * matrix)
        seconds = self.seconds + time.perf_counter() - started
        return LayerResult(self.layer, error, solution.errors, seconds)

    def _agreed(self, solution: LayerSolution) -> LayerSolution:
        """The solution of the first process: decimals of one machine may not be those of another."""
        if ranks.size() == 1:
            return solution
        # Each process has a device of its own.
        sent = replace(solution, codes=solution.codes.cpu(), scale=solution.scale.cpu())
        found = ranks.agreed(lambda: sent)
        return replace(found, codes=found.codes.to(self.gram.device), scale=found.scale.to(self.gram.device))

    def _bounds(self, codebook: Codebook, state: QuantizationState) -> Bounds | None:
        """The codes that the weights may have, in the shape of `target`."""
        bounds = state.bounds(self.layer.weight_name, codebook)
        if bounds is None:
            return None
        bounds = bounds.map(self.layer.to_matrix)
        if self.with_bias:
            last = state.bounds(self.layer.bias_name, codebook).map(lambda codes: codes.view(1, -1, 1))
            bounds = Bounds(torch.cat([bounds.lower, last.lower], 2), torch.cat([bounds.upper, last.upper], 2))
        return bounds.map(lambda codes: codes.to(self.gram.device))

    def _shared(self, problem: LayerProblem, solution: LayerSolution) -> tuple[LayerSolution, Tensor]:
        """The solution with one scale where the layer is to have one, and what each channel's gain must make up for."""
        if self.per_channel or not problem.per_channel:
            return solution, torch.ones_like(self.raw.target_mean)
        # Batch norm takes up what tells the channels' scales apart, and what a solver blind to inputs has missed.
        levels = problem.codebook.values(solution.codes, problem.target.dtype)
        scale = problem.fit(levels, solution.scale).scale
        shared = scale.mean((0, 1), keepdim=True)
        return replace(solution, scale=shared), scale / shared

    def _split(self, solution: LayerSolution, codebook: Codebook) -> dict[str, QuantizedWeight]:
        """The solution as parameters: the weight, and the bias where it was the last column."""
        layer, d = self.layer, solution.codes.shape[2] - self.with_bias
        weight = layer.to_weight(solution.codes[..., :d].contiguous())
        weights = {layer.weight_name: QuantizedWeight(weight, solution.scale, codebook)}
        if self.with_bias:
            weights[layer.bias_name] = QuantizedWeight(solution.codes[..., d].flatten(), solution.scale, codebook)
        return weights
