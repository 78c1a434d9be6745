"""Soft assignment between two neighbouring levels, made hard step by step."""

import torch
from torch import Tensor

from ldnq.quantized import QuantizedWeight
from ldnq.quantizers.parametrized import Quantizer

# The sigmoid is stretched beyond 0 and 1, so that both are reached (Louizos et al., arXiv 1712.01312).
STRETCH = 0.1
# How much of the other level there is in the beginning.
START = 0.05


class SoftAssignment(Quantizer):
    """Latent values v to `scale · (l + h (u − l))` between the code's level and the next, l and u, where h is a
    stretched sigmoid of `v / temperature` (AdaRound, arXiv 2004.10568, equation 23, on levels of any distance).

    As `temperature` falls to zero h becomes 0 or 1. Starts at the codes, not at the float weight as AdaRound does: they
    make up for each other's errors, which the float weights do not know of. The other level of a pair is the next one
    on the side of the float weight.
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
        share = torch.where(codes > self.lower, 1 - START, START).to(weight)
        return torch.logit((share + STRETCH) / (1 + 2 * STRETCH))

    def codes(self, latent: Tensor) -> Tensor:
        return (self.lower + (latent >= 0)).to(torch.uint8)

    def _pair(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.codebook.values(self.lower, dtype), self.codebook.values(self.lower + 1, dtype)
