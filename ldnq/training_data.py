"""What a training learns from: images in memory, some of them held out, and a teacher."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ldnq import graph
from ldnq.augmentation import SMALL
from ldnq.config import DataConfig, NetworkConfig
from ldnq.data import Data
from ldnq.datasets.images import Prepared, in_memory
from ldnq.errors import UsageError
from ldnq.network import load_network
from ldnq.preprocessing import Preprocessing
from ldnq.training_recipe import TrainingRecipe

# Images are held in memory while training; beyond this many bytes that is refused rather than swapped.
MAX_BYTES = 16 << 30
# Large images are kept a little larger than the network's input, so that random parts lose no sharpness.
MARGIN = 8 / 7


@dataclass(frozen=True)
class TrainingImages:
    """`images` (n, 3, s, s) uint8 and `labels` (n,) int64 to train on; those `held_out` are prepared as for a test."""

    images: Tensor
    labels: Tensor
    held_out: tuple[Tensor, Tensor] | None


def training_images(data: Data, preprocessing: Preprocessing, recipe: TrainingRecipe, workers: int) -> TrainingImages:
    """All training images of `data`, of which the share `recipe.hold_out`, drawn by its seed, is held out.

    Raises `UsageError` where they do not fit in memory.
    """
    size = preprocessing.image_size
    kept = size if size <= SMALL else round(size * MARGIN)
    if len(data.training) * 3 * kept**2 > MAX_BYTES:
        raise UsageError(f"{len(data.training)} images of {kept} pixels do not fit in {MAX_BYTES >> 30} GiB of memory")
    ours, theirs = split(len(data.training), recipe.hold_out, recipe.seed)
    larger = Preprocessing(kept, preprocessing.mean, preprocessing.std)
    images, labels = in_memory(Prepared(data.training, larger, ours), workers)
    held_out = in_memory(Prepared(data.training, preprocessing, theirs), workers) if len(theirs) else None
    return TrainingImages(images, labels, held_out)


def split(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of `count` indices those that stay and, drawn by `seed`, a `share`, one at least of any, that does not, in order.

    >>> [part.tolist() for part in split(6, 0.3, seed=0)]
    [[0, 1, 4, 5], [2, 3]]
    """
    held = max(1, round(share * count)) if share else 0
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(count)[:held]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def load_teacher(
    network: NetworkConfig,
    weights: Path,
    model: str | None,
    options: DataConfig,
    data: Data,
    preprocessing: Preprocessing,
) -> nn.Module:
    """The float network with these `weights`, `model` or the student's own; raises `UsageError` where it does not see
    images by the student's `preprocessing`, or tells other classes apart than those of `data`."""
    if model:
        network = NetworkConfig(model, num_classes=network.num_classes)
    network = replace(network, checkpoint=str(weights))
    teacher = load_network(network, options, data.family, data.num_classes)
    for name in ("image_size", "mean", "std"):
        ours, theirs = getattr(preprocessing, name), getattr(teacher.preprocessing, name)
        if ours != theirs:
            option = name.replace("_", "-")
            raise UsageError(f"expected a teacher of {option} {ours}, as the network, found {theirs}: see --{option}")
    size = preprocessing.image_size
    logits = graph.forward(teacher.module, torch.zeros(2, 3, size, size))
    if logits.shape != (2, data.num_classes):
        found = tuple(logits.shape[1:])
        raise UsageError(f"expected a teacher of {data.num_classes} classes, found one with outputs of shape {found}")
    return teacher.module
