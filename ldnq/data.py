"""From a dataset's name and options to its images."""

import os
from dataclasses import dataclass
from pathlib import Path

from ldnq.config import DataConfig
from ldnq.datasets import DatasetFamily, datasets
from ldnq.datasets.images import Images
from ldnq.datasets.shard_files import SUFFIX, holds_shards
from ldnq.datasets.shards import load_shards
from ldnq.errors import DataError, UsageError, shorten


@dataclass(frozen=True)
class Data:
    """The training images of a dataset if they were asked for, and its test images where it has labelled ones."""

    family: DatasetFamily
    train: Images | None
    test: Images | None

    @property
    def training(self) -> Images:
        """The training images; raises `DataError` where there are none."""
        if self.train is None:
            raise DataError(f"expected training images of {self.family.name}, found none")
        return self.train

    @property
    def num_classes(self) -> int | None:
        """How many classes there are; None for unlabelled images."""
        return self.family.num_classes or len(self.class_names) or None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, empty where unknown."""
        return next((images.class_names for images in (self.train, self.test) if images and images.labelled), ())


def load_data(config: DataConfig, family: DatasetFamily, *, training: bool = True) -> Data:
    """The splits of a dataset, the test images alone without `training`.

    Raises `DataError` where its folder or images are missing or its classes are not those expected.
    """
    root = find_root(config, family)
    train = _load(family, root, "train", config) if training else None
    test = _load(family, root, "test", config)
    expected = family.num_classes
    for images in (train, test):
        if expected and images and len(images.class_names) != expected:
            found = len(images.class_names)
            raise DataError(f"expected the {expected} classes of {family.name} in {root}, found {found}")
    if test and train and train.labelled and test.class_names != train.class_names:
        single = sorted(set(train.class_names) ^ set(test.class_names))
        raise DataError(
            f"expected the same classes in both splits of {root}, found {len(train.class_names)} for training and "
            f"{len(test.class_names)} for testing: {shorten(single)} in one alone"
        )
    return Data(family, train, test)


def _load(family: DatasetFamily, root: Path, split: str, config: DataConfig) -> Images | None:
    """The images of `split`, in tar shards or in the dataset's usual form."""
    if not family.embedded and holds_shards(root):
        return load_shards(root, split, family.num_classes)
    return family.load(root, split, config.download)


def find_root(config: DataConfig, family: DatasetFamily) -> Path:
    """The dataset's own folder, or the names of its shards: `--data-root`, else `$LDNQ_DATA/<dataset>`, else
    `data/<dataset>` or `calib_data/<dataset>`."""
    if config.data_root is not None:
        root = Path(config.data_root)
    elif family.name == "folder":
        raise UsageError("expected --data-root for dataset folder: the folder that holds train/ and val/ or test/")
    else:
        root = usual_root(family)
    if family.embedded or root.suffix == SUFFIX:
        return root
    if config.download:
        root.mkdir(parents=True, exist_ok=True)
    if not root.is_dir():
        raise DataError(f"no folder {root} for dataset {family.name}: give --data-root or set LDNQ_DATA")
    return root


def usual_root(family: DatasetFamily) -> Path:
    """Where a dataset lies if nobody says otherwise: in `data/`, or in `calib_data/` if it is there alone."""
    name = family.folder or family.name
    if "LDNQ_DATA" in os.environ:
        return Path(os.environ["LDNQ_DATA"]) / name
    root, other = (Path(folder) / name for folder in ("data", "calib_data"))
    return other if other.is_dir() and not root.is_dir() else root


def resolve_dataset(name: str | None, default: str, model: str) -> DatasetFamily:
    """The dataset called `name`, or the usual one of the network."""
    if not (name or default):
        raise UsageError(f"expected --dataset for {model}: it has no usual one; see 'ldnq list datasets'")
    return datasets.get(name or default)
