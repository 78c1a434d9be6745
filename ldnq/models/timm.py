"""Every image classifier of timm, as `timm/NAME` (Wightman, PyTorch Image Models), where timm is installed."""

import difflib
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from torch import Tensor, nn

from ldnq.errors import CheckpointError, UsageError
from ldnq.extras import require
from ldnq.models.registry import ModelFamily
from ldnq.preprocessing import Preprocessing

log = logging.getLogger(__name__)

PREFIX = "timm/"
# Seconds, until there is no network: timm itself would try for a minute.
PATIENCE = 10
# Arguments by which timm would fetch weights, also where a file of a stranger names them.
FETCHING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def find(model: str) -> ModelFamily:
    """The family of the network `timm/NAME` with timm's own preprocessing.

    Raises `UsageError` where timm is not installed or has no such network.
    """
    timm = require("timm", "timm")
    name = model.removeprefix(PREFIX)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has the names"
        raise UsageError(f"unknown network {name!r} of timm: {hint}")
    preprocessing = _preprocessing(timm, name)
    return ModelFamily(
        model,
        partial(_build, name),
        preprocessing.image_size,
        "imagenet",
        preprocessing.resize,
        published=partial(TimmWeights, name),
        preprocessing=preprocessing,
    )


def _build(name: str, **arguments: Any) -> nn.Module:
    if fetching := [argument for argument in FETCHING if argument in arguments]:
        raise UsageError(f"expected arguments of the network {name}, got {fetching[0]}: give weights by --checkpoint")
    return require("timm", "timm").create_model(name, **arguments)


def _preprocessing(timm: ModuleType, name: str) -> Preprocessing:
    config = timm.get_pretrained_cfg(name)
    data = require("timm.data", "timm").resolve_data_config(pretrained_cfg=config.to_dict() if config else {})
    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        raise UsageError(f"expected a network of square RGB images, timm has {name} for {data['input_size']}")
    if data["crop_mode"] != "center":
        log.warning("timm takes images for %s by %r, ldnq their centre", name, data["crop_mode"])
    # As timm's own transforms round it.
    resize = math.floor(height / data["crop_pct"])
    return Preprocessing(height, tuple(data["mean"]), tuple(data["std"]), resize, data["interpolation"])


@dataclass(frozen=True)
class TimmWeights:
    """The weights that timm downloads for the network called `name`; they are kept in the cache of huggingface_hub."""

    name: str

    @property
    def file(self) -> None:
        """They are known by no file name of their own: all are called alike."""

    @property
    def card(self) -> dict[str, Any]:
        """The number of classes; preprocessing is the family's."""
        config = require("timm", "timm").get_pretrained_cfg(self.name)
        return {"num_classes": config.num_classes} if config else {}

    def __str__(self) -> str:
        return f"timm {self.name}"

    def fetch(self, folder: str) -> Mapping[str, Tensor]:
        """The state dict, downloaded where it is not in the cache; raises `CheckpointError` where it cannot be had."""
        timm, hub = require("timm", "timm"), require("huggingface_hub", "timm")
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        try:
            config = timm.get_pretrained_cfg(self.name)
            repository = config and config.hf_hub_id
            if repository and not isinstance(hub.try_to_load_from_cache(repository, "model.safetensors"), str):
                _check_connection(hub.constants.ENDPOINT)
            return timm.create_model(self.name, pretrained=True).state_dict()
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"cannot download the weights of timm for {self.name}: give --checkpoint, or connect to the network"
            ) from error


def _check_connection(address: str) -> None:
    # An answer of whatever kind will do.
    with suppress(HTTPError):
        urlopen(address, timeout=PATIENCE).close()  # noqa: S310, the hub's own address, nothing is read
