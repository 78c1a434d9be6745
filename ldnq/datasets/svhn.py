"""Street View House Numbers, as `train_32x32.mat`, `test_32x32.mat` and `extra_32x32.mat` in torchvision's form."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from torchvision.datasets import SVHN
from torchvision.datasets.utils import download_url

from ldnq.datasets.images import ArrayImages, Images, JoinedImages, one_line
from ldnq.datasets.registry import DatasetFamily, datasets
from ldnq.errors import DataError, lacks_memory
from ldnq.files import replacing

MEAN = (0.4377, 0.4438, 0.4728)
STD = (0.1980, 0.2010, 0.1970)
DIGITS = tuple("0123456789")


def load_svhn(root: Path, split: str, download: bool = False) -> Images:
    """The images of `split`, which may also be "extra"; raises `DataError` where its file is missing or none of SVHN's.

    Any file in their form is read, be it the published one or a part of it.
    """
    address, name, digest = SVHN.split_list[split]
    path = root / name
    if download and not path.exists():
        _fetch(address, path, digest)
    if not path.is_file():
        raise DataError(f"no SVHN in {root}: expected {name}; --download fetches it")
    try:
        contents = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # whatever a damaged file does to SciPy
        if lacks_memory(error):
            raise
        raise DataError(
            f"cannot read {path} ({one_line(error)}): remove it and --download fetches the published one"
        ) from error
    pixels = _pixels(contents, path)
    return ArrayImages(pixels, _labels(contents, len(pixels), path), DIGITS)


def load_svhn_extra(root: Path, split: str, download: bool = False) -> Images:
    """`load_svhn` with both of its collections of training images."""
    if split != "train":
        return load_svhn(root, split, download)
    return JoinedImages([load_svhn(root, part, download) for part in ("train", "extra")])


def _fetch(address: str, path: Path, digest: str) -> None:
    try:
        with replacing(path) as temporary:
            download_url(address, temporary.parent, temporary.name, digest)
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot download {address} ({one_line(error)}): put it into {path.parent}") from error


def _pixels(contents: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    """(n, height, width, 3), the file's own array seen from another side: there may be gigabytes."""
    pixels = contents.get("X", np.empty(0))
    if pixels.ndim == 3:
        # MATLAB drops the last axis of a single image.
        pixels = pixels[..., np.newaxis]
    if pixels.ndim != 4 or pixels.shape[2] != 3 or not pixels.size or pixels.dtype != np.uint8:
        found = f"{pixels.dtype} {pixels.shape}" if "X" in contents else "none"
        raise DataError(f"expected images X, uint8 (32, 32, 3, n), in {path}, found {found}")
    return pixels.transpose(3, 0, 1, 2)


def _labels(contents: Mapping[str, np.ndarray], count: int, path: Path) -> np.ndarray:
    """(count,) with 0 for the digit 0, which the file has as 10."""
    labels = contents.get("y", np.empty(0)).ravel()
    if len(labels) != count or not np.isin(labels, np.arange(11)).all():
        found = f"{len(labels)}, such as {labels[:4].tolist()}" if "y" in contents else "none"
        raise DataError(f"expected {count} labels y from 1 to 10, which is the digit 0, in {path}, found {found}")
    return labels.astype(np.int64) % 10


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
datasets.add(
    "svhn-extra",
    DatasetFamily(
        "svhn-extra",
        load_svhn_extra,
        "svhn with 531,131 more, easier ones to train on",
        10,
        32,
        MEAN,
        STD,
        flip=False,
        folder="svhn",
        paper="Netzer et al. 2011",
    ),
)
