"""Codebooks within codebooks: which codes of fewer levels those of more levels merge into."""

import torch
from torch import Tensor

from ldnq.codebook import Bounds
from ldnq.config import KBITS
from ldnq.errors import UsageError

# Of a power-of-two codebook: the magnitude that merges with the next larger one, where 0 is zero, 1 the smallest.
# Widths are solved coarse to fine; of all 120 tables these leave the least error of normal and of Laplacian weights.
JOINED = {5: 1, 7: 0, 9: 3, 11: 0}


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
    table = torch.arange(high) - high // 2
    for kbits in range(high, low, -2):
        table = table - table.sign() * (table.abs() > JOINED[kbits])
    return (table + low // 2).to(torch.uint8)
