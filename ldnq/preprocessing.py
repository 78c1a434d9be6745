"""From an image file to the numbers that a network expects."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldnq.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """Shorter side to `resize` pixels by `interpolation`, central `image_size` square, then `(x/255 − mean) / std` per
    channel.

    An image that is already `image_size` square is taken as it is.
    """

    image_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not 8 <= self.image_size <= 4096:
            raise UsageError(f"expected an image size between 8 and 4096 pixels, got {self.image_size}")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise UsageError(f"expected three means and three deviations, got {self.mean} and {self.std}")
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(s) and s > 0 for s in self.std):
            raise UsageError(f"expected finite means and positive deviations, got {self.mean} and {self.std}")
        if self.resize is not None and self.resize < self.image_size:
            raise UsageError(f"expected resize of at least the image size {self.image_size}, got {self.resize}")

        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"expected interpolation {' or '.join(INTERPOLATIONS)}, got {self.interpolation!r}")

    def to_uint8(self, image: Image.Image) -> Tensor:
        """A picture as (3, image_size, image_size) uint8."""
        image = to_rgb(image)
        if image.size != (self.image_size, self.image_size):
            resample = INTERPOLATIONS[self.interpolation]
            image = _crop_centre(_resize_shorter(image, self.resize or self.image_size, resample), self.image_size)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def normalize(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) uint8, or float in 0 … 255, to float32 in the network's units, on the same device."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1) * 255
        return (images.float() - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`; raises `UsageError` where values are missing or of another kind."""
        try:
            resize = None if values.get("resize") is None else int(values["resize"])
            interpolation = str(values.get("interpolation", "bilinear"))
            return cls(
                int(values["image_size"]), _triple(values["mean"]), _triple(values["std"]), resize, interpolation
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"expected preprocessing with image_size, mean and std, got {dict(values)}") from error


def _triple(values: Iterable[Any]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as RGB, upright, eight bits a channel; transparency is dropped. Raises `ValueError` where its numbers
    have no largest one that stands for white."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    image = ImageOps.exif_transpose(image)
    if sixteen:
        # Pillow would take all above 255 for white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"expected 8 or 16 bits a channel, found 32 (mode {image.mode})")
    if "transparency" in image.info:
        # Straight to RGB, Pillow warns of palettes with transparent entries.
        image = image.convert("RGBA")
    return image.convert("RGB")


# Both round as torchvision's transforms do, on which published accuracies rest.


def _resize_shorter(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    shorter = min(image.size)
    return image.resize((size * image.width // shorter, size * image.height // shorter), resample)


def _crop_centre(image: Image.Image, size: int) -> Image.Image:
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))
