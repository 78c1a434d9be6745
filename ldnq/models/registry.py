"""The table of network families, and what a family says of itself."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ldnq.registry import Registry


@dataclass(frozen=True)
class ModelFamily:
    """A network by name.

    `build(num_classes=…, **arguments)` makes it with random weights; `image_size` is its native input size in pixels,
    cut from images whose shorter side is `resize`; `torchvision_weights` names the published weights it starts from;
    `summary` and `paper` say what it is.
    """

    name: str
    build: Callable[..., nn.Module]
    image_size: int
    default_dataset: str
    resize: int | None = None
    torchvision_weights: str | None = None
    summary: str = ""
    paper: str = ""


models: Registry[ModelFamily] = Registry("model")
