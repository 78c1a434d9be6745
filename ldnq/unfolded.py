"""The Gram matrix of a layer's inputs, each written out as often as the layer meets it."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Of the rows of a Gram matrix that are made at once: fewer save more of what lies below the diagonal, but products of
# small matrices are slower.
ROWS, SHARE = 64, 8


class Unfolded:
    """Sums in float64 of the products of what `layer`, a convolution or a linear layer, multiplies its weights with."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        self.layer = layer
        self.groups, self.d = getattr(layer, "groups", 1), layer.weight[0].numel()
        # Only blocks on the diagonal and to their right.
        self.sum = torch.zeros(self.groups, self.d, self.d, dtype=torch.float64, device=layer.weight.device)

    def add(self, x: Tensor) -> None:
        """Padded images (n, channels, h, w), best in channels-last memory, or samples (…, in)."""
        met = windows(self.layer, x)
        for rows in self._blocks():
            self.sum[:, rows, rows.start :].add_(met[..., rows].mT @ met[..., rows.start :])

    def gram(self) -> Tensor:
        """X Xᵀ (groups, d, d), d in the order of the weight."""
        gram = self.sum.clone()
        for rows in self._blocks():
            gram[:, rows.stop :, rows] = gram[:, rows, rows.stop :].mT
        places = math.prod(self.layer.kernel_size) if isinstance(self.layer, nn.Conv2d) else 1
        # (groups, place, c, place, c) to (groups, c, place, c, place)
        gram = gram.unflatten(2, (places, -1)).unflatten(1, (places, -1)).permute(0, 2, 1, 4, 3)
        return gram.flatten(3).flatten(1, 2)

    def _blocks(self) -> Iterator[slice]:
        step = max(ROWS, -(-self.d // SHARE))
        return (slice(start, start + step) for start in range(0, self.d, step))


def windows(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """What `layer` meets in padded images or samples (…, in): (groups, positions, kh·kw·cin/groups), the channels of a
    place next to each other, as channels-last memory has them."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, layer.in_features)
    x = x.permute(0, 2, 3, 1).unflatten(3, (layer.groups, -1))
    for axis, count, pitch, step in zip((1, 2), layer.kernel_size, layer.dilation, layer.stride):
        x = x.unfold(axis, (count - 1) * pitch + 1, step)[..., ::pitch]
    # (n, h, w, groups, c, kh, kw)
    return x.permute(3, 0, 1, 2, 5, 6, 4).flatten(4).flatten(1, 3)
