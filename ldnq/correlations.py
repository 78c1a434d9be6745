"""The Gram matrix of a convolution's windows from correlations of whole images with themselves."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldnq import graph

# How many times fewer multiplications make up for smaller matrices.
WORTHWHILE = 1.5


class Part(NamedTuple):
    """Of the products of all places with those `down` and to the `right` of them those in one `row`, one `column`, or,
    where both are None, everywhere."""

    down: int
    right: int
    row: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class Geometry:
    """Where the `window` of a convolution of stride 1 goes: row i of it is `pitch[0]·i` below its first, and it begins
    in the first `size` rows and columns of the padded images, of `full` rows and columns here. Only those `there` are
    not zero; a shift of images that lie flat one behind the other, which goes past the end of a row or an image, meets
    zeros alone.
    """

    window: tuple[int, int]
    pitch: tuple[int, int]
    size: tuple[int, int]
    full: tuple[int, int]
    there: tuple[range, range]

    @classmethod
    def of(cls, layer: nn.Conv2d, padded: torch.Size, size: torch.Size) -> "Geometry | None":
        """Of images `padded` to so many rows and columns and outputs of `size`; None where unfolding does as well."""
        if layer.stride != (1, 1) or layer.kernel_size == (1, 1):
            return None
        left, right, top, bottom = graph.margins(layer) if layer.padding_mode == "zeros" else (0, 0, 0, 0)
        ends = ((top, bottom), (left, right))
        reach = [(count - 1) * step for count, step in zip(layer.kernel_size, layer.dilation)]
        full = [count + max(0, far - sum(end)) for count, far, end in zip(padded, reach, ends)]
        there = [range(start, count - stop) for count, (start, stop) in zip(padded, ends)]
        geometry = cls(layer.kernel_size, layer.dilation, tuple(size), tuple(full), tuple(there))  # type: ignore
        unfolded = len(geometry.places) ** 2 * size[0] * size[1]
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
        return tuple(dict.fromkeys(part for pair in pairs for part, _ in self.block(*pair)))

    def block(self, first: tuple[int, int], second: tuple[int, int]) -> Iterator[tuple[Part, int]]:
        """The parts that products of two places of the window are made of, and their signs: all of their distance, less
        those in rows and in columns that this pair does not meet, which were then taken off twice where they cross."""
        down, right = (b - a for a, b in zip(first, second))
        yield Part(down, right), 1
        rows, columns = (
            [place for place in there if place + shift in there and not start <= place < start + count]
            for there, shift, start, count in zip(self.there, (down, right), first, self.size)
        )
        yield from ((Part(down, right, row), -1) for row in rows)
        yield from ((Part(down, right, None, column), -1) for column in columns)
        yield from ((Part(down, right, row, column), 1) for row, column in product(rows, columns))

    def positions(self, part: Part) -> int:
        """How many of an image it takes."""
        return (self.full[0] if part.row is None else 1) * (self.full[1] if part.column is None else 1)


class Correlations:
    """Sums of the products of images with themselves, shifted, in float64: (groups, c, c) for each part of `geometry`,
    which the Gram matrix of the windows is put together of. For windows of 3×3 that is 13 products of c×c and a few of
    single rows and columns, where unfolded columns take 81."""

    def __init__(self, geometry: Geometry, groups: int) -> None:
        self.geometry = geometry
        self.groups = groups
        self.sums: dict[Part, Tensor] = {}

    def add(self, x: Tensor) -> None:
        """Padded images (n, channels, h, w), best in channels-last memory, where nothing has to be copied."""
        below, beside = (count - found for count, found in zip(self.geometry.full, x.shape[2:]))
        images = F.pad(x, (0, beside, 0, below)) if below or beside else x
        # (n, height, width, groups, c), and one image behind the other (groups, places, c).
        images = images.permute(0, 2, 3, 1).unflatten(3, (self.groups, -1))
        flat = images.flatten(0, 2).movedim(1, 0)
        for part in self.geometry.parts:
            if part.row is None and part.column is None:
                shift = part.down * self.geometry.full[1] + part.right
                found = flat[:, : flat.shape[1] - shift].mT @ flat[:, shift:]
            else:
                found = self._line(images, part)
            self.sums[part] = self.sums[part] + found if part in self.sums else found.double()

    def gram(self) -> Tensor:
        """X Xᵀ (groups, d, d) of the unfolded images X."""
        places = self.geometry.places
        count, some = len(places), next(iter(self.sums.values()))
        blocks = some.new_empty(self.groups, count, count, *some.shape[1:])
        for i, j in combinations_with_replacement(range(count), 2):
            (everywhere, _), *missed = self.geometry.block(places[i], places[j])
            block = self.sums[everywhere].clone()
            for part, sign in missed:
                block.add_(self.sums[part], alpha=sign)
            blocks[:, i, j], blocks[:, j, i] = block, block.mT
        # (groups, place, place, c, c) to (groups, c, place, c, place)
        return blocks.permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2)

    def _line(self, images: Tensor, part: Part) -> Tensor:
        here = there = images
        for axis, place, shift, known in zip(
            (1, 2), (part.row, part.column), (part.down, part.right), self.geometry.there
        ):
            if place is not None:
                here, there = here.narrow(axis, place, 1), there.narrow(axis, place + shift, 1)
            else:
                start, count = max(known.start, known.start - shift), len(known) - abs(shift)
                here, there = here.narrow(axis, start, count), there.narrow(axis, start + shift, count)
        here, there = (images.flatten(0, 2).movedim(1, 0) for images in (here, there))
        return here.mT @ there
