"""Every image classifier of torchvision, by torchvision's own name."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.error import URLError

import torchvision
from torch import Tensor, nn

from ldnq.catalogue import cited
from ldnq.errors import CheckpointError
from ldnq.models.registry import ModelFamily, models

# Published weights bring sizes of their own; these hold without them.
IMAGE_SIZE = 224
RESIZE = 256


@dataclass(frozen=True)
class TorchvisionWeights:
    """The oldest published weights of the network `name` (`IMAGENET1K_V1` for the ResNets, as in the L-DNQ paper).

    Those named E2E need another network than the plain one of that name.
    """

    name: str

    @property
    def entry(self) -> torchvision.models.WeightsEnum:
        """torchvision's own record of them."""
        entries = list(torchvision.models.get_model_weights(self.name))
        return next((entry for entry in entries if "E2E" not in entry.name), entries[0])

    @property
    def file(self) -> str:
        """As torchvision calls it in its address."""
        return self.entry.url.rsplit("/", 1)[1]

    @property
    def card(self) -> dict[str, Any]:
        """Classes and preprocessing as published."""
        transforms = self.entry.transforms()
        return {
            "num_classes": len(self.entry.meta["categories"]),
            "preprocessing": {
                "image_size": transforms.crop_size[0],
                "resize": transforms.resize_size[0],
                "mean": transforms.mean,
                "std": transforms.std,
                "interpolation": transforms.interpolation.value,
            },
        }

    def __str__(self) -> str:
        return f"torchvision {self.entry}"

    def fetch(self, folder: str) -> Mapping[str, Tensor]:
        """The state dict from torchvision's cache or address; raises `CheckpointError` where neither has it."""
        try:
            return self.entry.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"cannot download {self.entry.url}: put that file into {folder}/, or give --checkpoint"
            ) from error


def _build(name: str, num_classes: int = 1000, **arguments: Any) -> nn.Module:
    if name in ("googlenet", "inception_v3"):
        # Their published weights expect inputs scaled anew; without the first argument both warn.
        arguments = {"init_weights": False, "transform_input": True} | arguments
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **arguments)


def _family(name: str) -> ModelFamily:
    summary, paper = cited(torchvision.models.get_model_builder(name).__doc__ or "")
    return ModelFamily(
        name,
        partial(_build, name),
        IMAGE_SIZE,
        "imagenet",
        RESIZE,
        published=partial(TorchvisionWeights, name),
        summary=summary,
        paper=paper,
    )


for _name in torchvision.models.list_models(module=torchvision.models):
    models.add(_name, _family(_name))
