"""The values that a quantized activation may take."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldnq.errors import UsageError


@dataclass(frozen=True)
class Grid:
    """The values `scale · (i − zero_point)` of the integers i from 0 to `2^bits − 1`, at most eight bits; 0 is one.

    >>> Grid(0.5, 1, 2).ends
    (-0.5, 1.0)
    """

    scale: float
    zero_point: int
    bits: int

    def __post_init__(self) -> None:
        if not (1 <= self.bits <= 8 and 0 <= self.zero_point < 2**self.bits and 0 < self.scale < math.inf):
            raise UsageError(f"expected a grid of a positive scale and up to eight bits with 0 on it, got {self}")

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return -self.zero_point * self.scale, (2**self.bits - 1 - self.zero_point) * self.scale

    def bias_unit(self, scale: Tensor) -> Tensor:
        """What one step of an integer bias is worth where inputs are on this grid and weights have this `scale`."""
        return scale * torch.tensor(self.scale, device=scale.device)
