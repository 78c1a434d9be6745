"""A network from its name: built, its weights found, its preprocessing decided."""

import copy
import importlib
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ldnq
from ldnq import checkpoints, graph
from ldnq.config import DataConfig, NetworkConfig
from ldnq.datasets import DatasetFamily
from ldnq.errors import MissingWeightsError, NetworkError, UsageError
from ldnq.models import ModelFamily, models, timm
from ldnq.preprocessing import Preprocessing

log = logging.getLogger(__name__)

EXTENSIONS = (".safetensors", ".pt", ".pth", ".th")


@dataclass
class Network:
    """A float network in eval mode, what builds it again, and how its images are prepared."""

    module: nn.Module
    model: str
    model_args: Mapping[str, Any]
    preprocessing: Preprocessing
    source: str


def find_family(model: str) -> ModelFamily:
    """The family called `model`, timm's of `timm/NAME`, or one that wraps the user's `package.module:factory`."""
    if model.startswith(timm.PREFIX):
        return timm.find(model)
    if ":" not in model:
        return models.get(model)
    return ModelFamily(model, _import_factory(model), image_size=0, default_dataset="")


def build(model: str, model_args: Mapping[str, Any]) -> nn.Module:
    """The network with random weights; raises `NetworkError` where the factory does not take the arguments."""
    try:
        module = find_family(model).build(**model_args)
    except (TypeError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())[:200]
        raise NetworkError(f"cannot build {model} with {dict(model_args)}: {message}") from error
    if not isinstance(module, nn.Module):
        raise NetworkError(f"expected {model} to return a torch.nn.Module, got {type(module).__name__}")
    return module.eval()


def load_network(config: NetworkConfig, data: DataConfig, dataset: DatasetFamily, num_classes: int | None) -> Network:
    """The trained network that `config` asks for, for a dataset of `num_classes` classes.

    Weights come from `config.checkpoint`, else from `config.pretrained_dir`, the weights that ship, or torchvision.
    """
    family = find_family(config.model)
    tensors, card, source = _find_weights(config, family, dataset)
    model_args = dict(card.get("model_args", {})) | config.model_args
    if ":" not in config.model or config.num_classes:
        wanted = config.num_classes or model_args.get("num_classes") or card.get("num_classes", num_classes)
        if wanted is None:
            raise UsageError(
                f"expected --num-classes for {config.model}: unlabelled images do not say how many there are"
            )
        model_args["num_classes"] = wanted
    module = build(config.model, model_args)
    if tensors is not None:
        checkpoints.load_into(module, tensors, source)
        log.info("weights: %s", source)
    preprocessing = decide_preprocessing(family, data, dataset, card)
    return Network(module, config.model, model_args, preprocessing, source)


def decide_preprocessing(
    family: ModelFamily, data: DataConfig, dataset: DatasetFamily, card: Mapping[str, Any] = {}
) -> Preprocessing:
    """The options of `data`, over what the weights' `card` says, over the network's size and the dataset's mean."""
    if "preprocessing" in card:
        chosen = Preprocessing.from_dict(card["preprocessing"])
    elif family.preprocessing:
        chosen = family.preprocessing
    else:
        size = family.image_size or dataset.image_size or data.image_size
        if not size:
            raise UsageError(f"expected --image-size for {family.name} on {dataset.name}: neither says its own")
        chosen = Preprocessing(size, dataset.mean, dataset.std, family.resize)
    if data.image_size and data.image_size != chosen.image_size:
        factor = (chosen.resize or chosen.image_size) / chosen.image_size
        chosen = replace(chosen, image_size=data.image_size, resize=round(data.image_size * factor))
        if data.image_size == dataset.image_size:
            # Nothing to crop: every image is what the network takes.
            chosen = replace(chosen, resize=None)
    return replace(chosen, mean=data.mean or chosen.mean, std=data.std or chosen.std)


def _find_weights(
    config: NetworkConfig, family: ModelFamily, dataset: DatasetFamily
) -> tuple[Mapping[str, Tensor] | None, Mapping[str, Any], str]:
    """(state dict or None, model card, where they come from)."""
    trained_on = [dataset.name] + (["imagenet"] if dataset.class_subset else [])
    wanted = "imagenet" in trained_on and not config.num_classes
    published = family.published() if family.published and wanted else None
    if config.checkpoint:
        tensors, card = checkpoints.read(Path(config.checkpoint))
        if not card and published and Path(config.checkpoint).name == published.file:
            card = published.card
        return tensors, card, config.checkpoint
    if ":" in config.model:
        return None, {}, f"{config.model} (its own weights)"
    names = {f"{config.file_name}-{name}{extension}": name for name in trained_on for extension in EXTENSIONS}
    if published and published.file:
        names[published.file] = "imagenet"
    for folder in (Path(config.pretrained_dir), *shipped_folders()):
        for name, trained in names.items():
            if (folder / name).is_file():
                tensors, card = checkpoints.read(folder / name)
                if not card and published and trained == "imagenet":
                    card = published.card
                return tensors, card, str(folder / name)
    if published:
        return published.fetch(config.pretrained_dir), published.card, str(published)
    raise MissingWeightsError(
        f"no weights for {config.model} on {dataset.name}: put {next(iter(names))} (or {', '.join(EXTENSIONS[1:])}) "
        f"into {config.pretrained_dir}/, give --checkpoint, or train them with 'ldnq train'"
    )


def start_from(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load `tensors` from `source`; a last layer of another number of classes keeps its random weights."""
    tensors = checkpoints.without_prefixes(tensors, module)
    last = [name for name, part in module.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))][-1:]
    own = module.state_dict()
    anew = [
        name
        for name in own
        if name.rpartition(".")[0] in last and name in tensors and tensors[name].shape != own[name].shape
    ]
    if anew:
        log.info("%s starts anew: %s has another number of classes", last[0], source)
    checkpoints.load_into(module, {**tensors, **{name: own[name] for name in anew}}, source)


def check_outputs(module: nn.Module, preprocessing: Preprocessing, num_classes: int) -> None:
    """Raise `NetworkError` before hours of training rather than after."""
    size = preprocessing.image_size
    # On a copy: a pass in training mode moves batch-norm statistics.
    logits = graph.forward(copy.deepcopy(module).train(), torch.zeros(2, 3, size, size))
    if logits.shape != (2, num_classes):
        raise NetworkError(
            f"expected one output for each of the {num_classes} classes, found outputs of shape {tuple(logits.shape)}"
        )


def shipped_folders() -> list[Path]:
    """Where weights that ship with ldnq lie: in the installed package, or in the checkout."""
    package = Path(ldnq.__file__).parent
    return [folder for folder in (package / "pretrained", package.parent / "pretrained") if folder.is_dir()]


def _import_factory(model: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = model.partition(":")
    # As 'python -m' does: a file in the current folder can be named.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UsageError(f"cannot import {attribute} from {module_name} for --model {model}: {error}") from error
