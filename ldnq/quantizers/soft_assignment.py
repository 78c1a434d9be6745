"""Soft assignment between two neighbouring levels, made hard step by step."""

import torch
from torch import Tensor

from ldnq.codebook import Bounds
from ldnq.quantized import QuantizedWeight
from ldnq.quantizers.parametrized import ScaledQuantizer

# The sigmoid is stretched beyond 0 and 1, so that both are reached (Louizos et al., arXiv 1712.01312).
STRETCH = 0.1


class SoftAssignment(ScaledQuantizer):
    """Latent values v to `scale · (l + h (u − l))` between the levels l and u around the float weight, where h is a
    stretched sigmoid of `v / temperature` (AdaRound, arXiv 2004.10568, equation 23, on levels of any distance).

    As `temperature` falls to zero h becomes 0 or 1. Starts at the float weight; a code that is not one of its two
    neighbours, because it makes up for the error of others, stays one end of the pair. Bounds may leave only one level.
    """

    def __init__(self, quantized: QuantizedWeight, weight: Tensor, bounds: Bounds | None = None) -> None:
        super().__init__(quantized, weight, bounds)
        self.temperature = 1.0
        self.lower = torch.zeros_like(quantized.codes, dtype=torch.long, device=weight.device)

    def forward(self, latent: Tensor) -> Tensor:
        lower, upper = self._pair(latent.dtype)
        return self.log_scale.exp() * (lower + self.share(latent) * (upper - lower))

    def share(self, latent: Tensor) -> Tensor:
        """h, from 0 at the lower level to 1 at the upper one."""
        return ((1 + 2 * STRETCH) * torch.sigmoid(latent / self.temperature) - STRETCH).clamp(0, 1)

    def start(self, codes: Tensor, weight: Tensor) -> Tensor:
        codes = codes.long()
        above = weight >= self.codebook.values(codes, weight.dtype)
        self.lower = torch.where(above, codes, codes - 1).clamp(0, self.codebook.num_levels - 2)
        if self.bounds:
            first, last = self.bounds.lower, self.bounds.upper.long()
            self.lower = self.lower.clamp(first, torch.maximum(last - 1, first))
        lower, upper = self._pair(weight.dtype)
        distance = torch.where(upper > lower, upper - lower, 1.0)
        share = ((weight - lower) / distance).clamp(0.02, 0.98)
        return torch.logit((share + STRETCH) / (1 + 2 * STRETCH))

    def codes(self, latent: Tensor) -> Tensor:
        return torch.where(latent >= 0, self._upper(), self.lower).to(torch.uint8)

    def _pair(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.codebook.values(self.lower, dtype), self.codebook.values(self._upper(), dtype)

    def _upper(self) -> Tensor:
        return self.bounds.clamp(self.lower + 1) if self.bounds else self.lower + 1
