"""Soft assignment between two neighbouring levels, made hard step by step."""

import torch
from torch import Tensor

from ldnq.quantized import QuantizedWeight
from ldnq.quantizers.parametrized import ScaledQuantizer

# The sigmoid is stretched beyond 0 and 1, so that both are reached (Louizos et al., arXiv 1712.01312).
STRETCH = 0.1


class SoftAssignment(ScaledQuantizer):
    """Latent values v to `scale · (l + h (u − l))` between the levels l and u around the float weight, where h is a
    stretched sigmoid of `v / temperature` (AdaRound, arXiv 2004.10568, equation 23, on levels of any distance).

    As `temperature` falls to zero h becomes 0 or 1. Starts at the float weight; a code that is not one of its two
    neighbours, because it makes up for the error of others, stays one end of the pair.
    """

    def __init__(self, quantized: QuantizedWeight, weight: Tensor) -> None:
        super().__init__(quantized, weight)
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
        lower, upper = self._pair(weight.dtype)
        share = ((weight - lower) / (upper - lower)).clamp(0.02, 0.98)
        return torch.logit((share + STRETCH) / (1 + 2 * STRETCH))

    def codes(self, latent: Tensor) -> Tensor:
        return (self.lower + (latent >= 0)).to(torch.uint8)

    def _pair(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.codebook.values(self.lower, dtype), self.codebook.values(self.lower + 1, dtype)
