"""Every image classifier of torchvision, by torchvision's own name."""

import re
from functools import partial

import torchvision
from torch import nn

from ldnq.models.registry import ModelFamily, models

# Published weights bring sizes of their own; these hold without them.
IMAGE_SIZE, RESIZE = 224, 256


def _build(name: str, num_classes: int = 1000, **arguments) -> nn.Module:
    if name in ("googlenet", "inception_v3"):
        # Their published weights expect inputs scaled anew; without the first argument both warn.
        arguments = {"init_weights": False, "transform_input": True} | arguments
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **arguments)


def _first_weights(name: str) -> str:
    """The oldest published weights of a network (`IMAGENET1K_V1` for the ResNets, as in the L-DNQ paper).

    Those named E2E need another network than the plain one of that name.
    """
    names = [weights.name for weights in torchvision.models.get_model_weights(name)]
    return next((weights for weights in names if "E2E" not in weights), names[0])


def _paper(name: str) -> tuple[str, str]:
    """Title and number of the paper that torchvision's documentation names first."""
    text = " ".join((torchvision.models.get_model_builder(name).__doc__ or "").split())
    found = re.search(r"`([^`<]+) <https?://arxiv\.org/(?:abs|pdf)/([\d.]+)", text)
    return (found[1], f"arXiv {found[2]}") if found else ("", "")


for _name in torchvision.models.list_models(module=torchvision.models):
    models.add(
        _name,
        ModelFamily(
            _name, partial(_build, _name), IMAGE_SIZE, "imagenet", RESIZE, _first_weights(_name), *_paper(_name)
        ),
    )
