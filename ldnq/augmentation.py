"""Random crops, flips, colours and mixtures of whole batches, on the device that holds them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4
# Up to this size in pixels images are shifted, as is usual for CIFAR; larger ones are cropped and resized.
SMALL = 64


@dataclass(frozen=True)
class Augmentation:
    """Random views of `size` pixels: small images shifted by up to four pixels (He et al., 2016, section 4.2), of
    larger ones a random part of at least `min_scale` of the area (Szegedy et al., 2015).

    `flip` mirrors every second image on average; off for digits. Brightness, contrast and saturation change by up to
    the share `colour`, each on its own.
    """

    size: int
    flip: bool = True
    min_scale: float = 0.35
    colour: float = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(n, 3, h, h) uint8 or float, h = `size` if small, to (n, 3, size, size) float32 in the same units."""
        view = self._shift if self.size <= SMALL else self._random_part
        images = view(images.float(), generator)
        if self.flip:
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)
        return self._recolour(images, generator) if self.colour else images

    def _shift(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = images.shape
        padded = F.pad(images, (PADDING,) * 4)
        top, left = torch.randint(0, 2 * PADDING + 1, (2, n, 1), generator=generator).to(images.device)
        rows = top + torch.arange(height, device=images.device)
        columns = left + torch.arange(width, device=images.device)
        index = torch.arange(n, device=images.device).view(n, 1, 1)
        # Advanced indices around a slice put the channels last: that is channels-last memory, read as (n, c, h, w).
        return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _random_part(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n = len(images)
        area, aspect, x, y = torch.rand(4, n, generator=generator).to(images.device)
        scale = (self.min_scale + (1 - self.min_scale) * area).sqrt()
        stretch = (4 / 3) ** (aspect - 0.5)
        width, height = (scale * stretch).clamp(max=1), (scale / stretch).clamp(max=1)
        theta = torch.zeros(n, 2, 3, device=images.device)
        theta[:, 0, 0], theta[:, 1, 1] = width, height
        theta[:, 0, 2], theta[:, 1, 2] = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
        grid = F.affine_grid(theta, [n, 3, self.size, self.size], align_corners=False)
        return F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")

    def _recolour(self, images: Tensor, generator: torch.Generator) -> Tensor:
        factors = 1 + self.colour * (2 * torch.rand(3, len(images), 1, 1, 1, generator=generator) - 1)
        brightness, contrast, saturation = factors.to(images.device)
        images = images * brightness
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + contrast * (images - mean)
        grey = images.mean(1, keepdim=True)
        return (grey + saturation * (images - grey)).clamp(0, 255)


def mix(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Of `images` (n, …) the given `share` together with another of the batch: one half as a weighted sum (mixup, arXiv
    1710.09412), the other with a rectangle of that other one (cutmix, arXiv 1905.04899), where they are (n, c, h, w).
    """
    chance, own, row, column = torch.rand(4, len(images), *[1] * (images.dim() - 1), generator=generator)
    blended = chance < share / 2 if images.dim() == 4 else chance < share
    weight = torch.where(blended, own, 1.0)
    if images.dim() == 4:
        height, width = images.shape[2:]
        side = (1 - own).sqrt() / 2
        rows, columns = (torch.arange(length).add(0.5) / length for length in (height, width))
        inside = ((rows[:, None] - row).abs() < side) & ((columns - column).abs() < side)
        weight = torch.where(inside & ~blended & (chance < share), 0.0, weight)
    weight = weight.to(images)
    return weight * images + (1 - weight) * images[torch.randperm(len(images), generator=generator)]
