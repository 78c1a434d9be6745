"""The table of network families, and what a family says of itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from ldnq.preprocessing import Preprocessing
from ldnq.registry import Registry


class Published(Protocol):
    """Weights trained on ImageNet that somebody offers; as a text, whose they are."""

    @property
    def file(self) -> str | None:
        """The name of their file, by which it is known wherever it lies."""

    @property
    def card(self) -> dict[str, Any]:
        """What a model card would say: the number of classes, the preprocessing."""

    def fetch(self, folder: str) -> Mapping[str, Tensor]:
        """The state dict, downloaded where need be; raises `CheckpointError` that says what to put into `folder`."""


@dataclass(frozen=True)
class ModelFamily:
    """A network by name.

    `build(num_classes=…, **arguments)` makes it with random weights; `image_size` is its native input size in pixels,
    cut from images whose shorter side is `resize`; `published` gives the weights that it starts from, `preprocessing`
    the network's own where it does not depend on the dataset; `quantized_args` are the arguments that build the form
    that is trained quantized, where it is another one, and `binary_args` those beside them where inputs become signs;
    `stay_float` are globs of the layers, beside the first and the last, that its paper keeps float when it trains with
    few bits; `summary` and `paper` say what it is.
    """

    name: str
    build: Callable[..., nn.Module]
    image_size: int
    default_dataset: str
    resize: int | None = None
    published: Callable[[], Published] | None = None
    preprocessing: Preprocessing | None = None
    quantized_args: Mapping[str, Any] = field(default_factory=dict)
    binary_args: Mapping[str, Any] = field(default_factory=dict)
    stay_float: tuple[str, ...] = ()
    summary: str = ""
    paper: str = ""


models: Registry[ModelFamily] = Registry("model")
