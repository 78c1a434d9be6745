"""Any-Precision: one set of weights for all widths (Yu et al., arXiv 1911.07346)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldnq.codebook import Codebook
from ldnq.config import FLOAT
from ldnq.precisions import requantized, stored_width
from ldnq.quantized import QuantizedWeight
from ldnq.quantizers.dorefa import UnitInputs
from ldnq.quantizers.inputs import Compute, kinds
from ldnq.quantizers.methods import Method, methods
from ldnq.quantizers.parametrized import Quantizer
from ldnq.quantizers.straight_through import straight_through
from ldnq.switching import Switched, unit_codes


@methods.register("any-precision")
@dataclass(frozen=True)
class AnyPrecision(Method):
    """Any-Precision: weights and inputs of all of `bits` from one set of weights, with a batch norm for each; narrower
    ones learn from labels (hard), the widest (soft) or the next wider (recursive). arXiv 1911.07346.

    `calibrate_bits` are widths that nothing is trained for: their batch norms are only calibrated.
    """

    bits: tuple[int, ...] = (1, 2, 4, 8, FLOAT)
    supervision: str = "recursive"
    calibrate_bits: tuple[int, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Those that are trained."""
        return self.bits

    def weights(self, layer: nn.Module) -> "SwitchedTanh":
        """Of every width."""
        return SwitchedTanh(self.bits)

    def inputs(self, layer: nn.Module, normalized: bool) -> "SwitchedInputs":
        """Of as many bits as the weights."""
        return SwitchedInputs(layer, max(self.bits))


class SwitchedTanh(Switched, Quantizer):
    """Latent values w to `E|w| tanh(w) / max|tanh(w)|`, rounded to the levels of the width; the gradient passes the
    rounding as if it were not there, and E|w| as if it were a constant.

    All `widths` come from the codes of the widest, or of 8 bits, so that these are all that has to be stored.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        self.width = max(widths)
        self.stored = stored_width(widths)

    def forward(self, latent: Tensor) -> Tensor:
        weight = self.unrounded(latent)
        if self.width == FLOAT:
            return weight
        steps = 2**self.width - 1
        codes = requantized(self._codes(weight.detach(), latent), self.stored, self.width)
        return straight_through(self.scale(latent, self.width) * (2 * codes - steps), weight)

    def unrounded(self, latent: Tensor) -> Tensor:
        squashed = latent.tanh()
        # All zeros would be divided by zero.
        largest = squashed.abs().max().clamp(min=torch.finfo(latent.dtype).tiny)
        return self.scale(latent, FLOAT) * (squashed / largest)

    def scale(self, latent: Tensor, width: int) -> Tensor:
        """What the odd integers of `width` are multiplied with, or floats up to 1."""
        magnitude = latent.detach().abs().mean()
        return magnitude if width == FLOAT else magnitude / (2**width - 1)

    def scales(self, latent: Tensor) -> Tensor:
        """Those of all widths (widths, 1)."""
        return torch.stack([self.scale(latent, width) for width in self.widths])[:, None]

    def quantized(self, latent: Tensor) -> QuantizedWeight | None:
        if self.width == FLOAT:
            return None
        codes = self._codes(self.unrounded(latent), latent).to(torch.uint8)
        return QuantizedWeight(codes, self.scale(latent, self.stored), Codebook.uniform(self.stored))

    def _codes(self, weight: Tensor, latent: Tensor) -> Tensor:
        """Those stored, as floats."""
        return unit_codes(weight, self.scale(latent, FLOAT), self.stored)


@kinds.register("any-precision")
class SwitchedInputs(Switched, UnitInputs):
    """Inputs clipped to 0…1 and rounded to 2^bits values; of 32 bits negative ones become zero, and nothing else."""

    kind = "any-precision"

    def forward(self, x: Tensor, compute: Compute) -> Tensor:
        return compute(F.relu(x)) if self.bits == FLOAT else super().forward(x, compute)

    def switch(self, width: int) -> None:
        super().switch(width)
        self.bits = width
