"""DoReFa-Net: weights, activations and gradients of few bits (Zhou et al., arXiv 1606.06160)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from ldnq.codebook import Codebook
from ldnq.config import FLOAT
from ldnq.quantized import QuantizedWeight
from ldnq.quantizers.inputs import Compute, InputQuantizer, check_bits, kinds
from ldnq.quantizers.methods import methods
from ldnq.quantizers.parametrized import Quantizer
from ldnq.quantizers.straight_through import sign, straight_through

# More make no codebook: such weights are trained rounded and kept as floats.
MAX_BITS = 8


@methods.register("dorefa")
@dataclass(frozen=True)
class DoReFa:
    """DoReFa-Net: weights of `wbits`, inputs of `abits` between 0 and 1, gradients of `gbits` (arXiv 1606.06160)."""

    binary: ClassVar[bool] = False
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
    of what the layer gives are rounded to `gradient_bits`."""

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
        return _RoundGradient.apply(y, self.gradient_bits) if self.training and self.gradient_bits < FLOAT else y

    def options(self) -> dict[str, Any]:
        return {"bits": self.bits}


def rounded(x: Tensor, bits: int) -> Tensor:
    """q_k: `x` between 0 and 1 to the nearest of 2^`bits` values, the gradient passed through (equation 5)."""
    return straight_through(_round(x.detach(), bits), x)


def _round(x: Tensor, bits: int) -> Tensor:
    steps = 2**bits - 1
    return (x * steps).round() / steps


class _RoundGradient(Function):
    """Nothing on the way forward; on the way back `f_γ(dr) = 2 m (q_k(dr / 2m + ½ + N) − ½)`, where m is the largest
    |dr| of a sample and N uniform noise of half a step to either side (equation 12)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return round_gradient(gradient, ctx.bits, torch.rand_like(gradient) - 0.5), None


def round_gradient(gradient: Tensor, bits: int, noise: Tensor) -> Tensor:
    """f_γ of the `gradient` (n, …) of n samples, with `noise` of its shape, in steps, between −½ and ½."""
    largest = gradient.abs().amax(tuple(range(1, gradient.dim())), keepdim=True)
    largest = largest.clamp(min=torch.finfo(gradient.dtype).tiny)
    shares = gradient / (2 * largest) + 0.5 + noise / (2**bits - 1)
    return 2 * largest * (_round(shares.clamp(0, 1), bits) - 0.5)
