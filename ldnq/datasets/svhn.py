"""Street View House Numbers, as torchvision's `train_32x32.mat` and `test_32x32.mat`."""

from pathlib import Path

import numpy as np
import torchvision

from ldnq.datasets.images import ArrayImages, Images
from ldnq.datasets.registry import DatasetFamily, datasets
from ldnq.errors import DataError

MEAN = (0.4377, 0.4438, 0.4728)
STD = (0.1980, 0.2010, 0.1970)


def load_svhn(root: Path, split: str, download: bool = False) -> Images:
    """The images of `split`; raises `DataError` where `root` does not hold its `.mat` file."""
    try:
        digits = torchvision.datasets.SVHN(root, split=split, download=download)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise DataError(f"no SVHN in {root}: expected {split}_32x32.mat; --download fetches it") from error
    pixels = np.transpose(digits.data, (0, 2, 3, 1))
    return ArrayImages(pixels, digits.labels, tuple("0123456789"))


datasets.add(
    "svhn",
    DatasetFamily(
        "svhn",
        load_svhn,
        "99,289 photographed house digits, 32x32",
        10,
        32,
        MEAN,
        STD,
        flip=False,
        paper="Netzer et al. 2011",
    ),
)
