"""The widths that one network runs at, and the codes of each out of those stored."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldnq.codebook import Codebook
from ldnq.config import FLOAT, KBITS, WIDTHS
from ldnq.errors import UsageError
from ldnq.nesting import merged

# What widths count: bits of uniform levels, or power-of-two levels.
UNITS = {"bits": WIDTHS, "kbits": KBITS}


@dataclass(frozen=True)
class Precisions:
    """The `widths` of a network, ascending, in `unit`; the `parameters` that have them are stored at the widest.

    Of "bits" the codebooks are uniform, 1 to 8 bits, and 32 stands for weights that are floats; of "kbits" they are the
    power-of-two ones of so many levels.
    """

    unit: str
    widths: tuple[int, ...]
    parameters: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "parameters", tuple(self.parameters))
        if self.unit not in UNITS:
            raise UsageError(f"expected widths in {' or '.join(UNITS)}, got {self.unit!r}")
        known, ascending = UNITS[self.unit], list(self.widths) == sorted(set(self.widths))
        whole = all(type(width) is int for width in self.widths)
        if not (self.widths and ascending and whole and set(known).issuperset(self.widths)):
            raise UsageError(f"expected ascending {self.unit} of {', '.join(map(str, known))}, got {self.widths}")
        if not all(isinstance(name, str) for name in self.parameters) or len(set(self.parameters)) < len(
            self.parameters
        ):
            raise UsageError(f"expected names of parameters, each once, got {self.parameters}")

    @property
    def stored(self) -> int:
        """The width of the codes that all others come from."""
        return stored_width(self.widths)

    def check(self, width: int, unit: str) -> int:
        """`width` in `unit`; raises `UsageError` where the network does not run at it."""
        if unit != self.unit or type(width) is not int or width not in self.widths:
            known = ", ".join(map(str, self.widths))
            raise UsageError(f"expected {self.unit} of {known}, which the network has, got {unit} {width}")
        return width

    def codebook(self, width: int) -> Codebook:
        """Of weights of this width, which are not floats."""
        return Codebook.uniform(width) if self.unit == "bits" else Codebook.power_of_two(width)

    def nearest(self, levels: Tensor) -> Tensor:
        """Codes (uint8) of the stored width of weights in units of their scale."""
        if self.unit == "bits":  # odd integers, which need no search
            return ((levels + (2**self.stored - 1)) / 2).round().to(torch.uint8)
        return self.codebook(self.stored).nearest(levels)

    def narrowed(self, codes: Tensor, width: int) -> Tensor:
        """Codes (uint8) of `width` from those stored."""
        if width == self.stored:
            return codes
        if self.unit == "kbits":
            return merged(codes, self.stored, width)
        return requantized(codes, self.stored, width).to(torch.uint8)


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


def stored_width(widths: tuple[int, ...]) -> int:
    """The width of the codes that those of all `widths` come from: the widest that is no float."""
    return max(widths) if max(widths) < FLOAT else WIDTHS[-2]
