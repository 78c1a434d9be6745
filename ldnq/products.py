"""Products of a layer's inputs and outputs, added up over positions: the small matrices that all else is made of."""

from itertools import product

import torch
from torch import Tensor, nn

from ldnq import graph, runtime
from ldnq.correlations import Correlations, Geometry
from ldnq.unfolded import Unfolded, windows

# Entries held at once, 4 MiB in float32: a cache can hold them, and sums of so few products are exact enough.
MAX_ENTRIES = 1 << 20


class Products:
    """Sums in float64, over the positions of what is added, of a layer's unfolded inputs X (groups, d, positions) and
    outputs Y (groups, out/groups, positions): `cross` Y Xᵀ, `total` X 1, `target_total` Y 1, `energy` ‖Y‖².

    Products of a slice are float32, or float64 of a layer with one position a sample: values pooled over an image may
    differ by a hundredth from one to the next, which float32 would lose in their squares.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.groups = getattr(layer, "groups", 1)
        self.rows, self.d = layer.weight.shape[0] // self.groups, layer.weight[0].numel()
        self._grams: dict[Geometry | None, Correlations | Unfolded] = {}
        self.cross, self.total = self._zeros(self.rows, self.d), self._zeros(self.d, 1)
        self.target_total = self._zeros(self.rows, 1)
        self._energy, self.positions = self.target_total.new_zeros(()), 0

    def _zeros(self, *size: int) -> Tensor:
        return torch.zeros(self.groups, *size, dtype=torch.float64, device=self.layer.weight.device)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Inputs `x` of the layer and outputs `y` without a bias, as the layer has them."""
        layer = self.layer
        if isinstance(layer, nn.Conv2d):
            x, y = graph.pad(layer, x), graph.with_samples(y)
        elif y.dim() == 1:
            x, y = x.unsqueeze(0), y.unsqueeze(0)
        positions = y[0].numel() // (self.rows * self.groups)
        geometry = Geometry.of(layer, x.shape[2:], y.shape[2:]) if isinstance(layer, nn.Conv2d) else None
        entries = x[0].numel() if geometry else self.d * self.groups * positions
        # Products of fewer positions than a Gram matrix has rows would take longer to add up than to multiply.
        step = max(1, MAX_ENTRIES // entries, self.d // positions)
        dtype = torch.float64 if positions == 1 else torch.float32
        self.positions += positions * len(y)
        for inputs, outputs in zip(x.split(step), y.split(step)):
            self._add(inputs.to(dtype), outputs.to(dtype), geometry)

    def gram(self) -> Tensor:
        """X Xᵀ (groups, d, d)."""
        first, *others = [found.gram() for found in self._grams.values()] or [self._zeros(self.d, self.d)]
        return sum(others, start=first)

    @property
    def energy(self) -> float:
        """‖Y‖²."""
        return float(self._energy)

    def _add(self, x: Tensor, y: Tensor, geometry: Geometry | None) -> None:
        if isinstance(self.layer, nn.Conv2d):
            x, y = (images.contiguous(memory_format=runtime.LAYOUT) for images in (x, y))
        if isinstance(self.layer, nn.Conv2d) and self.layer.kernel_size != (1, 1):
            self._add_cross(self.layer, x, y)
        else:
            met, targets = windows(self.layer, x), graph.as_matrix(self.layer, y)
            self.cross += targets @ met
            self.total += (met.new_ones(1, met.shape[1]) @ met).mT
            self.target_total += targets @ met.new_ones(met.shape[1], 1)
        self._energy += torch.linalg.vector_norm(y, dtype=torch.float64) ** 2
        if geometry not in self._grams:
            self._grams[geometry] = Correlations(geometry, self.groups) if geometry else Unfolded(self.layer)
        self._grams[geometry].add(x)

    def _add_cross(self, layer: nn.Conv2d, x: Tensor, y: Tensor) -> None:
        # What the chain rule would give the weight, were Y the gradient of the outputs.
        with runtime.exact():
            cross = torch.nn.grad.conv2d_weight(x, layer.weight.shape, y, layer.stride, 0, layer.dilation, layer.groups)
        self.cross += cross.reshape(self.cross.shape)
        # Products with ones are faster than sums.
        image = (x.new_ones(len(x)) @ x.permute(0, 2, 3, 1).flatten(1)).view(*x.shape[2:], -1).permute(2, 0, 1)
        self.total += _sums(layer, image, y.shape[2:]).view_as(self.total)
        targets = y.permute(0, 2, 3, 1).flatten(0, 2)
        self.target_total += (y.new_ones(len(targets)) @ targets).view_as(self.target_total)


def _sums(layer: nn.Conv2d, image: Tensor, size: torch.Size) -> Tensor:
    """What each place of the window meets of an `image` (channels, h, w), in sum over `size` positions: (channels,
    kh·kw)."""
    met = []
    for place in product(*map(range, layer.kernel_size)):
        starts = (index * step for index, step in zip(place, layer.dilation))
        rows, columns = (
            slice(start, start + step * count, step) for start, step, count in zip(starts, layer.stride, size)
        )
        met.append(image[:, rows, columns].sum((1, 2)))
    return torch.stack(met, 1)
