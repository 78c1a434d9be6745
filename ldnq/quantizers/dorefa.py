"""DoReFa-Net: weights, activations and gradients of few bits (Zhou et al., arXiv 1606.06160)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldnq.codebook import Codebook
from ldnq.config import FLOAT
from ldnq.quantized import QuantizedWeight
from ldnq.quantizers.inputs import Compute, InputQuantizer, check_bits, kinds
from ldnq.quantizers.methods import Method, methods
from ldnq.quantizers.parametrized import Quantizer
from ldnq.quantizers.straight_through import sign, straight_through

# More make no codebook: such weights are trained rounded and kept as floats.
MAX_BITS = 8


@methods.register("dorefa")
@dataclass(frozen=True)
class DoReFa(Method):
    """DoReFa-Net: weights of `wbits`, inputs of `abits` between 0 and 1, gradients of `gbits` (arXiv 1606.06160)."""

    wbits: int = 4
    abits: int = 4
    gbits: int = FLOAT

    def weights(self, layer: nn.Module) -> "TanhWeight | None":
        """Of `wbits`."""
        return TanhWeight(self.wbits) if self.wbits < FLOAT else None

    def inputs(self, layer: nn.Module, normalized: bool) -> "UnitInputs | None":
        """Of `abits`."""
        return UnitInputs(layer, self.abits, self.gbits) if min(self.abits, self.gbits) < FLOAT else None


class TanhWeight(Quantizer):
    """Latent values w to `2 q_k(tanh(w) / (2 max|tanh(w)|) + ½) − 1`, or to `E|w| sign(w)` of one bit; the gradient
    passes the rounding as if it were not there (arXiv 1606.06160, section 2.3)."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, latent: Tensor) -> Tensor:
        if self.bits == 1:
            return straight_through(latent.abs().mean() * sign(latent), latent)
        weight = self.unrounded(latent)
        return 2 * rounded(weight / 2 + 0.5, self.bits) - 1

    def unrounded(self, latent: Tensor) -> Tensor:
        if self.bits == 1:
            return latent
        squashed = latent.tanh()
        # All zeros would be divided by zero.
        return squashed / squashed.abs().max().clamp(min=torch.finfo(latent.dtype).tiny)

    def settled(self, latent: Tensor) -> Tensor:
        """Of more than one bit what tanh and the division by the largest turn into the levels again."""
        if self.bits == 1:
            return self(latent)
        return (self(latent) * latent.tanh().abs().max()).atanh()

    def quantized(self, latent: Tensor) -> QuantizedWeight | None:
        if self.bits > MAX_BITS:
            return None
        codebook = Codebook.uniform(self.bits)
        scale = latent.abs().mean() if self.bits == 1 else torch.tensor(1 / codebook.levels[-1])
        codes = ((self.unrounded(latent) / 2 + 0.5) * codebook.levels[-1]).round().to(torch.uint8)
        return QuantizedWeight(codebook.nearest(latent) if self.bits == 1 else codes, scale, codebook)


@kinds.register("unit")
class UnitInputs(InputQuantizer):
    """Inputs clipped to 0…1 and rounded to 2^`bits` values (arXiv 1606.06160, section 2.4); in training the gradients
    of what the layer gives are rounded to `gradient_bits` (section 2.5)."""

    kind = "unit"

    def __init__(self, layer: nn.Module, bits: int, gradient_bits: int = FLOAT) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.gradient_bits = gradient_bits

    def forward(self, x: Tensor, compute: Compute) -> Tensor:
        if self.bits < FLOAT:
            x = F.hardtanh(x, 0, 1)
            x = rounded(x, self.bits) if self.training else _round(x, self.bits)
        y = compute(x)
        if self.training and self.gradient_bits < FLOAT and y.requires_grad:
            y.register_hook(lambda gradient: round_gradient(gradient, self.gradient_bits))
        return y

    def options(self) -> dict[str, Any]:
        return {"bits": self.bits}


def rounded(x: Tensor, bits: int) -> Tensor:
    """q_k: `x` between 0 and 1 to the nearest of 2^`bits` values, the gradient passed through (equation 5)."""
    return straight_through(_round(x.detach(), bits), x)


def _round(x: Tensor, bits: int) -> Tensor:
    # Sixteen bits of a float are too few to tell which of many levels is nearest.
    steps = 2**bits - 1
    return ((_precise(x) * steps).round() / steps).to(x.dtype)


def round_gradient(gradient: Tensor, bits: int, noise: Tensor | None = None) -> Tensor:
    """`f_γ(dr) = 2 m (q_k(dr / 2m + ½ + N) − ½)` of the `gradient` dr (n, …) of n samples, where m is the largest |dr|
    of a sample and N uniform `noise` of half a step to either side, given in steps (equation 12)."""
    dr = _precise(gradient)
    largest = dr.abs().amax(tuple(range(1, dr.dim())), keepdim=True).clamp(min=torch.finfo(dr.dtype).tiny)
    steps = torch.rand_like(dr) - 0.5 if noise is None else noise
    shares = dr / (2 * largest) + 0.5 + steps / (2**bits - 1)
    return (2 * largest * (_round(shares.clamp(0, 1), bits) - 0.5)).to(gradient.dtype)


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
