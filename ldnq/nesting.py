"""Codebooks within codebooks: which codes of fewer levels those of more levels merge into."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldnq.codebook import Bounds
from ldnq.config import KBITS
from ldnq.errors import UsageError

# Of power-of-two codebooks, by their numbers of levels, the many and the fewer: the magnitudes of the larger one (zero
# is 0, the smallest level 1) at which those of the smaller one begin. Of all such tables these leave the least error of
# normal and of Laplacian weights together, where the fewest levels are solved first.
BEGINNINGS: dict[int, dict[int, tuple[int, ...]]] = {
    5: {3: (1,)},
    7: {3: (2,), 5: (2, 3)},
    9: {3: (2,), 5: (2, 3), 7: (1, 2, 3)},
    11: {3: (3,), 5: (2, 4), 7: (1, 3, 4), 9: (1, 3, 4, 5)},
}


def merged(codes: Tensor, high: int, low: int) -> Tensor:
    """The codes (uint8, the shape of `codes`) on `low` power-of-two levels that those on `high` levels stand for.

    >>> merged(torch.arange(7), 7, 5)
    tensor([0, 1, 2, 2, 2, 3, 4], dtype=torch.uint8)
    """
    return _table(high, low).to(codes.device)[codes.long()]


def interval(codes: Tensor, low: int, high: int) -> Bounds:
    """The codes on `high` levels that merge into `codes` (uint8) on `low` levels.

    >>> interval(torch.tensor([1, 2], dtype=torch.uint8), 5, 7)
    Bounds(lower=tensor([1, 2], dtype=torch.uint8), upper=tensor([1, 4], dtype=torch.uint8))
    """
    table, codes = _table(high, low).to(codes.device), codes.contiguous()
    lower, upper = (torch.searchsorted(table, codes, right=right) for right in (False, True))
    return Bounds(lower.to(torch.uint8), (upper - 1).to(torch.uint8))


def _table(high: int, low: int) -> Tensor:
    """The code on `low` levels of every one on `high` levels (high,), ascending."""
    if not (low in KBITS and high in KBITS and low <= high):
        raise UsageError(f"expected kbits of {', '.join(map(str, KBITS))}, the smaller first, got {low} and {high}")
    if low == high:
        return torch.arange(high, dtype=torch.uint8)
    beginnings = torch.tensor(BEGINNINGS[high][low])
    magnitudes = torch.bucketize(torch.arange(1, high // 2 + 1), beginnings, right=True)
    signed = torch.cat([-magnitudes.flip(0), torch.zeros(1, dtype=torch.long), magnitudes])
    return (signed + low // 2).to(torch.uint8)


@dataclass(frozen=True)
class Nest:
    """What is known of a weight's codes on `num_levels` levels, the most there will be: they are within `bounds`."""

    num_levels: int
    bounds: Bounds

    @classmethod
    def around(cls, codes: Tensor, low: int, high: int) -> "Nest":
        """Of `high` levels, all that merge into `codes` on `low` levels."""
        return cls(high, interval(codes, low, high))

    def on(self, low: int) -> Bounds:
        """What merged codes on `low` levels may be."""
        return self.bounds.map(lambda codes: merged(codes, self.num_levels, low))

    def narrowed(self, codes: Tensor, low: int) -> "Nest":
        """What is left where they merge into `codes` on `low` levels."""
        further = interval(codes, low, self.num_levels)
        lower = torch.maximum(self.bounds.lower, further.lower)
        return Nest(self.num_levels, Bounds(lower, torch.minimum(self.bounds.upper, further.upper)))
