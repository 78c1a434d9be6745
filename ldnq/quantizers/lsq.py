"""LSQ: steps that are learned (Esser et al., arXiv 1902.08153)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldnq.codebook import Codebook
from ldnq.config import FLOAT
from ldnq.errors import UsageError
from ldnq.quantized import QuantizedWeight
from ldnq.quantizers.inputs import Compute, InputQuantizer, check_bits, kinds
from ldnq.quantizers.methods import Method, methods
from ldnq.quantizers.parametrized import Quantizer
from ldnq.quantizers.straight_through import straight_through


@methods.register("lsq")
@dataclass(frozen=True)
class Lsq(Method):
    """LSQ: weights of `wbits` and activations of `abits` whose steps are learned (arXiv 1902.08153)."""

    wbits: int = 4
    abits: int = 4

    def weights(self, layer: nn.Module) -> "StepWeight | None":
        """Of `wbits`."""
        if self.wbits >= FLOAT:
            return None
        # The paper's levels without the lowest, so that they are symmetric.
        largest = 2 ** (self.wbits - 1) - 1
        codebook = Codebook(tuple(float(level) for level in range(-largest, largest + 1)))
        return StepWeight(codebook, _first_step(layer.weight.detach(), largest))

    def inputs(self, layer: nn.Module, normalized: bool) -> "StepInputs | None":
        """Of `abits`."""
        return StepInputs(layer, self.abits) if self.abits < FLOAT else None


class StepWeight(Quantizer):
    """Latent values w to the nearest of the levels of a codebook, times a learned `step` of the layer or of each output
    channel (arXiv 1902.08153, section 2, where levels are integers)."""

    def __init__(self, codebook: Codebook, step: Tensor) -> None:
        super().__init__()
        self.codebook = codebook
        self.step = nn.Parameter(step)

    def forward(self, latent: Tensor) -> Tensor:
        largest = self.codebook.levels[-1]
        step = _scaled_gradient(self.step, (latent.numel() // self.step.numel() * largest) ** -0.5)
        clipped = (latent / step).clamp(-largest, largest)
        levels = self.codebook.rounded(clipped.detach())
        return straight_through(levels, clipped) * step

    def unrounded(self, latent: Tensor) -> Tensor:
        return latent

    def quantized(self, latent: Tensor) -> QuantizedWeight:
        step = self.step.detach()
        # A negative step mirrors the levels.
        codes = self.codebook.nearest(latent / step * step.sign())
        return QuantizedWeight(codes, step.abs(), self.codebook)


@kinds.register("step")
class StepInputs(InputQuantizer):
    """Inputs on 2^`bits` multiples of a learned step from 0 on, or around 0 where inputs are `signed` (arXiv
    1902.08153, section 2)."""

    kind = "step"

    def __init__(self, layer: nn.Module, bits: int, signed: bool = False) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.signed = signed
        self.step = nn.Parameter(torch.tensor(1.0))

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the greatest multiple."""
        return (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)

    def start(self, x: Tensor) -> None:
        self.signed = bool((x < 0).any())
        if self.signed and self.bits == 1:
            raise UsageError("expected abits of 2 or more where inputs of layers are negative, got 1: use --skip")
        self.step.data = _first_step(x.float(), self.ends[1]).to(self.step.device)

    def forward(self, x: Tensor, compute: Compute) -> Tensor:
        if not self.training:
            return compute((x / self.step).clamp(*self.ends).round() * self.step)
        step = _scaled_gradient(self.step, (x[0].numel() * self.ends[1]) ** -0.5)
        # The step's gradient is a small difference of large sums, of which sixteen bits leave nothing.
        clipped = (x.float() / step).clamp(*self.ends)
        return compute((straight_through(clipped.detach().round(), clipped) * step).to(x.dtype))

    def options(self) -> dict[str, Any]:
        return {"bits": self.bits, "signed": self.signed}


def _first_step(values: Tensor, largest: int) -> Tensor:
    """`2 E|v| / √Q`, where training starts (section 2.1)."""
    return (2 * values.abs().mean() / largest**0.5).clamp(min=torch.finfo(torch.float32).tiny)


def _scaled_gradient(step: Tensor, share: float) -> Tensor:
    """`step`, of whose gradient a `share` is left (section 2.2)."""
    return straight_through(step, step * share)
