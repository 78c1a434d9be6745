"""The Gram matrix of a convolution's windows from correlations of whole images with themselves."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations_with_replacement, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldnq import graph

# How many times fewer multiplications make up for smaller matrices.
WORTHWHILE = 1.5
# Copies that cut out columns take as long as products of so many channels with columns of zeros as wide as the image.
COPIES = 20
# Of a sum of products in float32.
PRECISION = 1e-6


class Part(NamedTuple):
    """Of the products of all places with those `down` and to the `right` of them those in one `row`, one `column`, or,
    where both are None, everywhere."""

    down: int
    right: int
    row: int | None = None
    column: int | None = None


# Of a place with itself.
ALL = Part(0, 0)


@dataclass(frozen=True)
class Geometry:
    """Where the `window` of a convolution of stride 1 goes: row i of it is `pitch[0]·i` below its first, and it begins
    in the first `size` rows and columns of the padded images. Only the rows and columns `there` are not zero."""

    window: tuple[int, int]
    pitch: tuple[int, int]
    size: tuple[int, int]
    there: tuple[range, range]

    @classmethod
    def of(cls, layer: nn.Conv2d, padded: torch.Size, size: torch.Size) -> "Geometry | None":
        """Of images `padded` to so many rows and columns and outputs of `size`; None where unfolding does as well."""
        if layer.stride != (1, 1) or layer.kernel_size == (1, 1):
            return None
        left, right, top, bottom = graph.margins(layer) if layer.padding_mode == "zeros" else (0, 0, 0, 0)
        there = range(top, padded[0] - bottom), range(left, padded[1] - right)
        geometry = cls(layer.kernel_size, layer.dilation, tuple(size), there)  # type: ignore
        count = len(geometry.places)
        unfolded = count * (count + 1) // 2 * size[0] * size[1]
        return geometry if WORTHWHILE * sum(map(geometry.positions, geometry.parts)) < unfolded else None

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Of the window, in the order of the weight: rows and columns from its first."""
        rows, columns = (range(0, count * step, step) for count, step in zip(self.window, self.pitch))
        return list(product(rows, columns))

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All that blocks are made of, each once."""
        pairs = combinations_with_replacement(self.places, 2)
        return tuple(dict.fromkeys([ALL, *(part for pair in pairs for part, _ in self.block(*pair))]))

    def block(self, first: tuple[int, int], second: tuple[int, int]) -> Iterator[tuple[Part, int]]:
        """The parts that products of two places of the window are made of, and their signs: all of their distance, less
        those in rows and in columns that this pair does not meet, which were then taken off twice where they cross.
        None of a pair that meets nothing but padding."""
        down, right = (b - a for a, b in zip(first, second))
        meeting = [self._meeting(axis, shift) for axis, shift in enumerate((down, right))]
        rows, columns = (
            [place for place in there if not start <= place < start + count]
            for there, start, count in zip(meeting, first, self.size)
        )
        if len(rows) == len(meeting[0]) or len(columns) == len(meeting[1]):
            return
        yield Part(down, right), 1
        yield from ((Part(down, right, row), -1) for row in rows)
        yield from ((Part(down, right, None, column), -1) for column in columns)
        yield from ((Part(down, right, row, column), 1) for row, column in product(rows, columns))

    def extent(self, part: Part) -> tuple[range, range]:
        """The rows and columns of the first factors; the others are `down` and to the `right` of them."""
        rows, columns = self._meeting(0, part.down), self._meeting(1, part.right)
        return (
            rows if part.row is None else range(part.row, part.row + 1),
            columns if part.column is None else range(part.column, part.column + 1),
        )

    def positions(self, part: Part) -> int:
        """How many of an image it takes."""
        rows, columns = self.extent(part)
        return len(rows) * len(columns)

    @property
    def reach(self) -> int:
        """Columns from the first to the last of the window."""
        return (self.window[1] - 1) * self.pitch[1]

    def _meeting(self, axis: int, shift: int) -> range:
        """Rows or columns that are there and, shifted, still are."""
        there = self.there[axis]
        start = max(there.start, there.start - shift)
        return range(start, max(start, min(there.stop, there.stop - shift)))


class Correlations:
    """Sums of the products of images with themselves, shifted, in float64: (groups, c, c) for each part of `geometry`,
    which the Gram matrix of the windows is put together of. For windows of 3×3 that is 13 products of c×c and a few of
    single rows and columns, where unfolded columns take 81, or 45 where each is made once."""

    def __init__(self, geometry: Geometry, groups: int) -> None:
        self.geometry = geometry
        self.groups = groups
        self.sums: dict[Part, Tensor] = {}

    def add(self, x: Tensor) -> None:
        """Padded images (n, channels, h, w), best in channels-last memory."""
        geometry = self.geometry
        # (h, n, w, groups, c): the rows of all images next to each other, so that a shift by rows loses no place.
        images = x.permute(2, 0, 3, 1).unflatten(3, (self.groups, -1))
        width, zeros = images.shape[2], images.shape[2] - len(geometry.there[1])
        shared = geometry.reach * images.shape[4] < COPIES * width
        if shared:
            images = F.pad(images, (0, 0, 0, 0, 0, max(0, geometry.reach - zeros))).contiguous()
        pieces = cache(lambda start, count: images.narrow(2, start, count).contiguous())
        for part in geometry.parts:
            rows, columns = geometry.extent(part)
            below = range(rows.start + part.down, rows.stop + part.down)
            if shared and part.column is None:
                here, there = _flat(images, rows), _flat(images, below)
                # Over the end of a row a shift meets zeros alone.
                here, there = _shifted(here, -part.right), _shifted(there, part.right)
            else:
                here, there = (
                    _flat(pieces(start, len(columns)), lines)
                    for start, lines in ((columns.start, rows), (columns.start + part.right, below))
                )
            found = here.mT @ there
            self.sums[part] = self.sums[part].add_(found) if part in self.sums else found.double()

    def gram(self) -> Tensor:
        """X Xᵀ (groups, d, d) of the unfolded images X."""
        places = self.geometry.places
        count, total = len(places), self.sums[ALL]
        blocks = total.new_zeros(self.groups, count, count, *total.shape[1:])
        for i, j in combinations_with_replacement(range(count), 2):
            for part, sign in self.geometry.block(places[i], places[j]):
                blocks[:, i, j].add_(self.sums[part], alpha=sign)
            if i != j:
                blocks[:, j, i] = blocks[:, i, j].mT
        # (groups, place, place, c, c) to (groups, c, place, c, place)
        gram = blocks.permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2)
        # What an input is less at the border may be nothing but rounding: then it is always zero where it is met.
        squares = total.diagonal(dim1=1, dim2=2).repeat_interleave(count, 1)
        alive = (gram.diagonal(dim1=1, dim2=2) > PRECISION * squares).to(gram).unsqueeze(2)
        return gram.mul_(alive).mul_(alive.mT)


def _flat(images: Tensor, rows: range) -> Tensor:
    """Those rows of (h, n, w, groups, c) as (groups, places, c)."""
    return images[rows.start : rows.stop].flatten(0, 2).movedim(1, 0)


def _shifted(places: Tensor, shift: int) -> Tensor:
    """(groups, places, c) without the first `shift` places, or without the last where it is negative."""
    return places[:, shift:] if shift >= 0 else places[:, :shift]
