"""Products of a layer's inputs and outputs, summed over positions: the small matrices that all else is made of."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldnq import graph


@dataclass(frozen=True)
class Strips:
    """Inputs X and outputs Y of a layer row by row, so that windows which overlap share their products.

    `inputs` is (groups, c·kw, rows of the input, length), unfolded along the rows only; row i of the `window` (kh, kw)
    of output row t is input row `t + i·pitch`. `outputs` is (groups, out/groups, rows of the output, length).
    """

    inputs: Tensor
    outputs: Tensor
    window: tuple[int, int]
    pitch: int

    @classmethod
    def of(cls, layer: nn.Module, teacher_layer: nn.Module, x: Tensor, y: Tensor) -> "Strips":
        """From the input `x` of `layer` and the output `y` of `teacher_layer`, whose bias is taken off; float32, or
        float64 of one position a sample."""
        # Values pooled over an image may differ by a hundredth from one to the next, which float32 would lose in their
        # squares; and these are few.
        dtype = torch.float64 if y[0].numel() == layer.weight.shape[0] else torch.float32
        outputs = graph.outputs_as_matrix(teacher_layer, y).to(dtype)
        if isinstance(layer, nn.Conv2d) and layer.stride[0] == 1 and layer.kernel_size[0] > 1:
            by_rows = outputs.unflatten(2, (-1, *y.shape[-2:])).transpose(2, 3).flatten(3)
            return cls(graph.unfold_rows(layer, x).to(dtype), by_rows, layer.kernel_size, layer.dilation[0])
        # Windows hardly overlap: whole columns, as if they were the one row of a single input.
        return cls(graph.unfold(layer, x).to(dtype).unsqueeze(2), outputs.unsqueeze(2), (1, 1), 1)

    @property
    def positions(self) -> int:
        """How many columns X and Y have."""
        return self.outputs.shape[2] * self.outputs.shape[3]

    def gram(self) -> Tensor:
        """X Xᵀ (groups, d, d). Of two rows of the window only the distance matters, but for the borders: one product
        for each distance, less the rows above and below that this pair does not meet."""
        height, reach, end = self.window[0], self.outputs.shape[2], self.inputs.shape[2]
        blocks = [[None] * height for _ in range(height)]
        for distance in range(height):
            shift = distance * self.pitch
            everywhere = self._product(0, end - shift, shift)
            for i in range(height - distance):
                top = i * self.pitch
                block = everywhere - self._product(0, top, shift) - self._product(top + reach, end - shift, shift)
                blocks[i][i + distance], blocks[i + distance][i] = block, block.mT
        # (groups, i, c·kw, j, c·kw), one side after the other.
        found = self._in_order(torch.stack([torch.stack(row, 2) for row in blocks], 1))
        return self._in_order(found.permute(0, 3, 1, 2))

    def cross(self) -> Tensor:
        """Y Xᵀ (groups, out/groups, d)."""
        outputs = self.outputs.flatten(2)
        return self._in_order(torch.stack([outputs @ rows.flatten(2).mT for rows in self._windows(self.inputs)], 2))

    def total(self) -> Tensor:
        """The sum of X over positions, (groups, d, 1)."""
        sums = [rows.sum(2) for rows in self._windows(self.inputs.sum(3))]
        return self._in_order(torch.stack(sums, 1)).unsqueeze(2)

    def _windows(self, rows: Tensor) -> list[Tensor]:
        """Of input `rows` (groups, c·kw, rows of the input, …) those that each row of the window meets."""
        tops = range(0, self.window[0] * self.pitch, self.pitch)
        return [rows[:, :, top : top + self.outputs.shape[2]] for top in tops]

    def _product(self, start: int, stop: int, shift: int) -> Tensor:
        """Of the input rows from `start` to `stop` with those `shift` below them, (groups, c·kw, c·kw)."""
        rows, below = (self.inputs[:, :, start + s : stop + s].flatten(2) for s in (0, shift))
        return rows @ below.mT

    def _in_order(self, blocks: Tensor) -> Tensor:
        """The last two axes, (kh, c·kw), as one in the weight's order (c, kh, kw)."""
        return blocks.unflatten(-1, (-1, self.window[1])).transpose(-3, -2).flatten(-3)
