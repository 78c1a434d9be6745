"""Second moments of a layer's inputs and targets, gathered batch by batch."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldnq import graph, ranks
from ldnq.correlations import PRECISION
from ldnq.graph import Layer
from ldnq.products import Products
from ldnq.soundness import finite, unusable


@dataclass(frozen=True)
class Moments:
    """Means over positions of a layer's products, float64; X are the student's unfolded inputs (d, positions), Y the
    teacher's outputs without bias (rows, positions).

    `gram` E[X Xᵀ] (groups, d, d); `mean` E[X] (groups, d, 1); `cross` E[Y Xᵀ] (groups, rows, d); `target_mean` E[Y]
    (groups, rows, 1); `energy` E‖y‖² of all rows together; `positions` counts the columns.
    """

    gram: Tensor
    mean: Tensor
    cross: Tensor
    target_mean: Tensor
    energy: float
    positions: int

    @property
    def dead_inputs(self) -> int:
        """How many inputs are zero at every position: their weights do not matter."""
        return int((self.gram.diagonal(dim1=-2, dim2=-1) == 0).sum())

    @property
    def gram_with_ones(self) -> Tensor:
        """The Gram matrix with a constant 1 as the last input, whose weight is the bias: (groups, d+1, d+1)."""
        one = torch.ones_like(self.mean[:, :1])
        return torch.cat([torch.cat([self.gram, self.mean], 2), torch.cat([self.mean.mT, one], 2)], 1)

    def cross_with_ones(self, bias: Tensor) -> Tensor:
        """Products of the targets, with `bias` (groups, rows, 1) in them, with those inputs: (groups, rows, d+1)."""
        return torch.cat([self.cross + bias @ self.mean.mT, self.target_mean + bias], 2)

    def centred(self) -> "Moments":
        """The same of inputs and targets less their means: what matters where something else takes up an offset."""
        gram = self.gram - self.mean @ self.mean.mT
        # Of an input that hardly changes float32 has kept the mean alone.
        variance, squares = (matrix.diagonal(dim1=-2, dim2=-1).unsqueeze(2) for matrix in (gram, self.gram))
        alive = (variance > PRECISION * squares).to(gram)
        return Moments(
            gram * alive * alive.mT,
            torch.zeros_like(self.mean),
            (self.cross - self.target_mean @ self.mean.mT) * alive.mT,
            torch.zeros_like(self.target_mean),
            self.energy - float(self.target_mean.square().sum()),
            self.positions,
        )

    def relative_error(self, weights: Tensor) -> float:
        """`‖Y − Ŵ X‖² / ‖Y‖²` of `weights` Ŵ (groups, rows, d); 0 where both are nothing."""
        quadratic = float((weights @ self.gram * weights).sum())
        residual = self.energy - 2 * float((weights * self.cross).sum()) + quadratic
        if self.energy <= 0:
            return 0.0 if residual <= 0 else float("inf")
        # Rounding can leave an error of an exact fit a hair below zero.
        return max(residual, 0.0) / self.energy


@torch.no_grad()
def gather_moments(
    layer: Layer, student: nn.Module, teacher: nn.Module, calls: Iterable[tuple[Tensor, Tensor]]
) -> Moments:
    """Moments of `layer`, the module `student` in one network and `teacher` in the other, over the `calls` of all
    processes: inputs as the student feeds them, and the outputs wanted, as the teacher computes them from its own.
    Never holds more than a slice of one unfolded input. Raises `NetworkError` where values are not finite."""
    sums = Products(student)
    for inputs, outputs in calls:
        # The network may run in bfloat16; the sums may not.
        with torch.autocast(inputs.device.type, enabled=False):
            sums.add(inputs, graph.without_bias(teacher, outputs))
    parts = [sums.gram(), sums.total, sums.cross, sums.target_total]
    ranks.sum_(*parts)
    energy, positions = ranks.total(sums.energy, sums.positions)
    if not finite(*parts) or not energy / positions < torch.finfo(torch.float32).max:
        raise unusable(f"layer {layer.name}")
    gram, total, cross, target_total = (entry / positions for entry in parts)
    return Moments(gram, total, cross, target_total, energy / positions, int(positions))
