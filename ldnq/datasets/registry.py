"""The table of datasets, and what a dataset says of itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ldnq.datasets.images import Images
from ldnq.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from ldnq.registry import Registry


@dataclass(frozen=True)
class DatasetFamily:
    """A dataset by name.

    `load(root, split, download)` gives the images of `split` ("train" or "test"), or None where the folder has no
    test split. `class_subset` lists which of an ImageNet network's 1,000 outputs are its classes; `flip` tells whether
    a mirrored image keeps its class; `embedded` data needs no folder, `folder` is the name of the usual one where it is
    another dataset's; `paper` is where it was published.
    """

    name: str
    load: Callable[[Path, str, bool], Images | None]
    summary: str
    num_classes: int | None = None
    image_size: int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    class_subset: tuple[int, ...] | None = None
    flip: bool = True
    embedded: bool = False
    folder: str = ""
    paper: str = ""


datasets: Registry[DatasetFamily] = Registry("dataset")
