"""The values that a quantized weight may take, in units of its scale."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ldnq.config import KBITS
from ldnq.errors import UsageError


@dataclass(frozen=True)
class Bounds:
    """The least and the greatest code that each weight may have, uint8 in one shape."""

    lower: Tensor
    upper: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "Bounds":
        """What `change` makes of both."""
        return Bounds(change(self.lower), change(self.upper))

    def __getitem__(self, index: Any) -> "Bounds":
        return self.map(lambda codes: codes[index])

    def clamp(self, codes: Tensor) -> Tensor:
        """The allowed codes nearest to `codes`."""
        return codes.clamp(self.lower, self.upper)


@dataclass(frozen=True)
class Codebook:
    """Levels in ascending order, symmetric about zero, 2 to 256 of them.

    >>> Codebook.power_of_two(5).levels
    (-2.0, -1.0, 0.0, 1.0, 2.0)
    >>> Codebook.power_of_two(5).nearest(torch.tensor([-0.5, 0.4, 1.5, 9.0]))
    tensor([1, 2, 4, 4], dtype=torch.uint8)
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        levels = self.levels
        if not 2 <= len(levels) <= 256:
            raise UsageError(f"expected 2 to 256 levels, got {len(levels)}")
        if list(levels) != sorted(set(levels)) or any(a != -b for a, b in zip(levels, reversed(levels))):
            raise UsageError(f"expected ascending levels symmetric about zero, got {levels}")

    @classmethod
    def power_of_two(cls, num_levels: int) -> "Codebook":
        """`{0, ±1, ±2, ±4, …}` with `num_levels` values (L-DNQ, section 3.1; the authors' kbits)."""
        if num_levels not in KBITS:
            raise UsageError(f"expected kbits of {', '.join(map(str, KBITS))}, got {num_levels}")
        magnitudes = [2.0**exponent for exponent in range(num_levels // 2)]
        return cls((*(-m for m in reversed(magnitudes)), 0.0, *magnitudes))

    @classmethod
    def uniform(cls, bits: int) -> "Codebook":
        """The odd integers `±1, ±3, … ±(2^bits − 1)` (DoReFa-Net, arXiv 1606.06160, section 2.3, times 2^bits − 1).

        >>> Codebook.uniform(2).levels
        (-3.0, -1.0, 1.0, 3.0)
        """
        if not 1 <= bits <= 8:
            raise UsageError(f"expected 1 to 8 bits, got {bits}")
        return cls(tuple(float(level) for level in range(1 - 2**bits, 2**bits, 2)))

    @property
    def num_levels(self) -> int:
        """How many values there are."""
        return len(self.levels)

    @property
    def bits(self) -> float:
        """Information in one code, log2 of the number of levels."""
        return math.log2(self.num_levels)

    def nearest(self, x: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Codes (uint8, the shape of `x`) of the levels nearest to `x`, of those within the `bounds`.

        A value half way between two levels goes to the one further from zero; with no level at zero, 0 goes up.
        """
        codes = torch.bucketize(x.contiguous(), _middles(self.levels, x.dtype, x.device), out_int32=True, right=True)
        codes = codes.to(torch.uint8)
        return codes if bounds is None else bounds.clamp(codes)

    def rounded(self, x: Tensor, bounds: Bounds | None = None) -> Tensor:
        """The levels nearest to `x`, in its shape and type, of those within the `bounds`."""
        codes = torch.bucketize(x.contiguous(), _middles(self.levels, x.dtype, x.device), right=True)
        codes = codes if bounds is None else bounds.clamp(codes)
        return _table(self.levels, x.dtype, x.device)[codes]

    def values(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Levels of `codes`, in units of the scale."""
        return _table(self.levels, dtype, codes.device)[codes.long()]

    def cell(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """The least and the greatest value that `nearest` gives these codes, none beyond the outermost levels."""
        levels = _table(self.levels, dtype, codes.device)
        middles = (levels[1:] + levels[:-1]) / 2
        lower, upper = torch.cat([levels[:1], middles]), torch.cat([middles, levels[-1:]])
        return lower[codes.long()], upper[codes.long()]

    def __str__(self) -> str:
        half = [f"{level:g}" for level in self.levels if level > 0]
        zero = ["0"] if self.num_levels % 2 else []
        return "{" + ", ".join(zero + [f"±{'' if level == '1' else level}α" for level in half]) + "}"


def _table(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`levels` as a tensor, which nobody may change."""
    return _tables(levels, dtype, device)[0]


def _middles(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where `levels` part: from each of these numbers on the upper level is the nearest."""
    return _tables(levels, dtype, device)[1]


@cache
def _tables(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept: whoever moves numbers to a GPU waits until it has done all else."""
    with torch.inference_mode(False):
        table = torch.tensor(levels, dtype=dtype)
        middles = (table[1:] + table[:-1]) / 2
        # Where a middle belongs to the level below it, the next number above is the first that does not.
        middles = torch.where(middles < 0, torch.nextafter(middles, torch.zeros_like(middles)), middles)
        return table.to(device), middles.to(device)
