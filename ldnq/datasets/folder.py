"""Image folders: `train/` with `val/` or `test/` by class, or one flat folder of unlabelled images."""

from pathlib import Path

from ldnq.datasets.images import Images
from ldnq.datasets.listing import class_folders, listed
from ldnq.datasets.registry import DatasetFamily, datasets
from ldnq.errors import DataError

TEST_FOLDERS = ("val", "test", "validation")


def load_folder(root: Path, split: str, download: bool = False) -> Images | None:
    """The images of `split` below `root`; None where there is no test split.

    Without a `train/` folder the images of `root` itself are the training images, with labels when they lie in
    folders by class. Raises `DataError` where no images are found.
    """
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if split == "train":
        if test is not None and not (root / "train").is_dir():
            raise DataError(f"expected {root / 'train'} beside {test}, found none")
        folder = root / "train" if (root / "train").is_dir() else root
        return listed(folder)
    return None if test is None else class_folders(test)


def load_splits(root: Path, split: str, download: bool = False) -> Images:
    """`load_folder` for datasets that have both splits; raises `DataError` where one is missing."""
    if split == "train" and not (root / "train").is_dir():
        raise DataError(f"expected {root / 'train'} with one folder per class, found none")
    images = load_folder(root, split)
    if images is None:
        raise DataError(f"expected {root / 'val'} or {root / 'test'} with one folder per class, found neither")
    return images


datasets.add(
    "folder", DatasetFamily("folder", load_folder, "any image folder, train/ and val/ by class, or tar shards")
)
