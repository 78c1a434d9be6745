"""CIFAR-10 as torchvision's batches, or as an image folder `train/` + `test/` of ten classes."""

from pathlib import Path

import torchvision

from ldnq.datasets.folder import load_splits
from ldnq.datasets.images import ArrayImages, Images
from ldnq.datasets.registry import DatasetFamily, datasets
from ldnq.errors import DataError

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def load_cifar10(root: Path, split: str, download: bool = False) -> Images:
    """The images of `split`; raises `DataError` where `root` holds neither form."""
    if (root / "train").is_dir():
        return load_splits(root, split)
    try:
        batches = torchvision.datasets.CIFAR10(root, train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"no CIFAR-10 in {root}: expected cifar-10-batches-py/ or train/ and test/ folders of ten classes; "
            "--download fetches it"
        ) from error
    return ArrayImages(batches.data, batches.targets, batches.classes)


datasets.add(
    "cifar10",
    DatasetFamily(
        "cifar10",
        load_cifar10,
        "60,000 photographs of ten classes, 32x32",
        10,
        32,
        MEAN,
        STD,
        paper="Krizhevsky 2009",
    ),
)
