"""Float baselines: trained, measured, and written as weights with a model card in their header."""

import copy
import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ldnq
from ldnq import checkpoints, graph, runtime, tensorboard
from ldnq.augmentation import SMALL, Augmentation
from ldnq.config import RunConfig
from ldnq.data import Data, load_data, resolve_dataset
from ldnq.datasets.images import Prepared, in_memory
from ldnq.errors import DataError, NetworkError, UsageError, keeping
from ldnq.measurement import measure
from ldnq.network import build, decide_preprocessing, find_family
from ldnq.preprocessing import Preprocessing
from ldnq.progress import headline
from ldnq.training import Trainer, TrainingRecipe

log = logging.getLogger(__name__)

# Images are held in memory while training; beyond this many bytes that is refused rather than swapped.
MAX_BYTES = 16 << 30
# Large images are kept a little larger than the network's input, so that random parts lose no sharpness.
MARGIN = 8 / 7


def train(
    config: RunConfig,
    recipe: TrainingRecipe,
    output: Path | None,
    *,
    init: Path | None,
    half: bool,
    compiled: bool,
    command: str,
    curves: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Train the network of `config` from random weights or those in `init`, or go on where a run into `output` stopped;
    returns the file and its card. `curves` are written for TensorBoard."""
    family = find_family(config.network.model)
    dataset = resolve_dataset(config.data.dataset, family.default_dataset, config.network.model)
    data = load_data(config.data, dataset)
    if not data.training.labelled:
        raise DataError(f"expected labelled images to train on, found none in dataset {dataset.name}")
    preprocessing = decide_preprocessing(family, config.data, dataset)
    torch.manual_seed(recipe.seed)
    module, model_args = _start(config, data, init)

    name = f"{config.network.file_name}-{dataset.name}"
    folder = output or Path("results") / f"train-{name}"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"expected a folder to write to, found the file {folder}: use another --output")
    _check_outputs(module, preprocessing, data.num_classes or 0)
    fabric = runtime.start(config.runtime, training=True)
    headline(f"{config.network.model} on {dataset.name}")
    images, labels = _load(data, preprocessing, config.runtime.workers)
    augmentation = Augmentation(preprocessing.image_size, dataset.flip)
    state = folder / "state.pt"
    subject = f"{config.network.model} {model_args} on {dataset.name} {data.training.fingerprint()} as {preprocessing}"
    subject += f" from {init.name}" if init else ""
    trainer = Trainer(module, images, labels, preprocessing, augmentation, recipe, fabric, state, subject, compiled)
    if trainer.resume():
        log.info("going on after epoch %d of %d", trainer.epoch, recipe.epochs)
    with keeping(partial(_kept, trainer)), tensorboard.writing(folder / "tensorboard" if curves else None):
        trainer.run()

    weights = {key: _stored(tensor, half) for key, tensor in module.state_dict().items()}
    # What is measured is what is stored.
    module.load_state_dict(weights)
    card = {
        "model": config.network.model,
        "model_args": model_args,
        **_description(data, preprocessing),
        "recipe": asdict(recipe),
        "command": command,
        **_accuracy(module, data, preprocessing, config),
        "ldnq": ldnq.__version__,
        "torch": torch.__version__,
    }
    path = folder / f"{name}.safetensors"
    checkpoints.write(path, weights, card)
    return path, card


def _kept(trainer: Trainer) -> str:
    if not trainer.state.exists():
        return "nothing was saved"
    return f"{trainer.epoch} of {trainer.recipe.epochs} epochs are saved in {trainer.state}, the same command goes on"


def _start(config: RunConfig, data: Data, init: Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network before training, and the arguments that it was built with."""
    model_args = dict(config.network.model_args)
    if ":" not in config.network.model or config.network.num_classes:
        model_args["num_classes"] = config.network.num_classes or data.num_classes
    module = build(config.network.model, model_args)
    if init:
        _start_from(module, init)
    return module, model_args


def _start_from(module: nn.Module, path: Path) -> None:
    """Load the weights in `path`; a last layer of another number of classes keeps its random ones."""
    tensors = checkpoints.without_prefixes(checkpoints.read(path)[0], module)
    last = [name for name, part in module.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))][-1:]
    own = module.state_dict()
    anew = [
        name
        for name in own
        if name.rpartition(".")[0] in last and name in tensors and tensors[name].shape != own[name].shape
    ]
    if anew:
        log.info("%s starts anew: %s has another number of classes", last[0], path)
    checkpoints.load_into(module, tensors | {name: own[name] for name in anew}, str(path))


def _check_outputs(module: nn.Module, preprocessing: Preprocessing, num_classes: int) -> None:
    """Raise `NetworkError` before hours of training rather than after."""
    size = preprocessing.image_size
    # On a copy: a pass in training mode moves batch-norm statistics.
    logits = graph.forward(copy.deepcopy(module).train(), torch.zeros(2, 3, size, size))
    if logits.shape != (2, num_classes):
        raise NetworkError(
            f"expected one output for each of the {num_classes} classes, found outputs of shape {tuple(logits.shape)}"
        )


def _load(data: Data, preprocessing: Preprocessing, workers: int) -> tuple[Tensor, Tensor]:
    size = preprocessing.image_size
    held = size if size <= SMALL else round(size * MARGIN)
    if len(data.training) * 3 * held**2 > MAX_BYTES:
        raise UsageError(f"{len(data.training)} images of {held} pixels do not fit in {MAX_BYTES >> 30} GiB of memory")
    larger = Preprocessing(held, preprocessing.mean, preprocessing.std)
    return in_memory(Prepared(data.training, larger), workers)


def _description(data: Data, preprocessing: Preprocessing) -> dict[str, Any]:
    return {
        "dataset": data.family.name,
        "train_images": len(data.training),
        "num_classes": data.num_classes,
        "class_names": list(data.class_names),
        "preprocessing": preprocessing.to_dict(),
    }


def _accuracy(module: nn.Module, data: Data, preprocessing: Preprocessing, config: RunConfig) -> dict[str, Any]:
    fabric = runtime.start(config.runtime)
    accuracy = measure(module, data, preprocessing, config.runtime, fabric, "evaluating")
    return {
        "top1": accuracy and accuracy.top1,
        "top5": accuracy and accuracy.top5,
        "test_images": accuracy.samples if accuracy else 0,
    }


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.half() if half and tensor.is_floating_point() else tensor
