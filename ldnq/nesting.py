"""Codebooks within codebooks: of a code of many levels those of few."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldnq.codebook import Codebook
from ldnq.config import FLOAT, WIDTHS
from ldnq.errors import UsageError

BITS = "bits"


def requantized(codes: Tensor, high: int, low: int) -> Tensor:
    """Codes of `low` bits, float, nearest to those of `high` bits: `(2·c·(2^low − 1) + N) // 2N` with N = 2^high − 1.

    The most significant bits would be other codes: of 8 bits 43 is 0.169 of the way up, of two bits the level at ⅓ is
    nearest.

    >>> requantized(torch.tensor([0, 42, 43, 127, 128, 255]), 8, 2)
    tensor([0., 0., 1., 1., 2., 3.])
    """
    steps, fewer = 2**high - 1, 2**low - 1
    # Exact in float32: all numbers are integers below 2^17, and a quotient that is none is 1/510 from the next.
    return ((2 * fewer * codes.float() + steps) / (2 * steps)).floor()


@dataclass(frozen=True)
class Precisions:
    """The `widths` that one network runs at, in ascending order, counted in `unit`; the `parameters` whose weights they
    are are stored at the widest.

    Of bits the codebooks are uniform, 1 to 8 bits, and 32 stands for weights that are floats.
    """

    unit: str
    widths: tuple[int, ...]
    parameters: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "parameters", tuple(self.parameters))
        if self.unit != BITS:
            raise UsageError(f"expected widths in {BITS}, got {self.unit!r}")
        ascending = self.widths and list(self.widths) == sorted(set(self.widths))
        if not ascending or not set(WIDTHS).issuperset(self.widths):
            raise UsageError(f"expected ascending bits of {', '.join(map(str, WIDTHS))}, got {self.widths}")

    @property
    def stored(self) -> int:
        """The width of the codes that all others come from."""
        return stored_width(self.widths)

    def check(self, width: int) -> int:
        """`width`; raises `UsageError` where the network does not run at it."""
        if width not in self.widths:
            known = ", ".join(map(str, self.widths))
            raise UsageError(f"expected {self.unit} of {known}, got {width}: the network was trained for no others")
        return width

    def codebook(self, width: int) -> Codebook:
        """Of weights of this width, which are not floats."""
        return Codebook.uniform(width)

    def narrowed(self, codes: Tensor, width: int) -> Tensor:
        """Codes (uint8) of `width` from those stored."""
        return codes if width == self.stored else requantized(codes, self.stored, width).to(torch.uint8)


def stored_width(widths: tuple[int, ...]) -> int:
    """The bits of the codes that those of all `widths` come from: the widest that is no float."""
    return max(widths) if max(widths) < FLOAT else WIDTHS[-2]
