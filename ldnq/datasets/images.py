"""Collections of labelled images: files on disk, or one array in memory."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ldnq import ranks
from ldnq.datasets.names import Names
from ldnq.errors import DataError
from ldnq.preprocessing import Preprocessing, to_rgb
from ldnq.progress import track

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
UNLABELLED = -1


class Images(ABC):
    """Pictures with labels (int64, −1 where there is none) and the names of the classes."""

    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return bool(self.class_names)

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """Image number `index`; raises `DataError` where it cannot be decoded."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A short text that is equal for equal collections and, in practice, only for those."""


class ArrayImages(Images):
    """Images held as one uint8 array (n, height, width, 3), in any order of memory: it is not copied."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
        self.pixels = np.asarray(pixels, dtype=np.uint8)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names = tuple(class_names)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for start in range(0, len(self), 1024):
            digest.update(self.pixels[start : start + 1024].tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


class JoinedImages(Images):
    """Collections of the same classes, one behind the other."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = tuple(parts)
        self.ends = np.cumsum([len(part) for part in parts])
        self.labels = np.concatenate([part.labels for part in parts])
        self.class_names = parts[0].class_names

    def picture(self, index: int) -> Image.Image:
        part = int(np.searchsorted(self.ends, index, side="right"))
        start = int(self.ends[part - 1]) if part else 0
        return self.parts[part].picture(index - start)

    def fingerprint(self) -> str:
        return hashlib.sha256("".join(part.fingerprint() for part in self.parts).encode()).hexdigest()[:16]


class FileImages(Images):
    """Image files below `root`, opened one at a time."""

    def __init__(self, root: Path, paths: Names, labels: np.ndarray, class_names: Sequence[str]) -> None:
        self.root = root
        self.paths = paths
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names = tuple(class_names)

    def picture(self, index: int) -> Image.Image:
        path = self.root / self.paths[index]
        try:
            return decode(path, str(path))
        except FileNotFoundError as error:
            raise DataError(f"image {path} is gone: it was there when the folder was listed") from error

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.paths.text.tobytes())
        # Sizes of a few hundred files tell two copies with equal names apart without touching a million.
        for index in np.linspace(0, len(self) - 1, min(len(self), 256)).astype(int):
            path = self.root / self.paths[index]
            try:
                digest.update(path.stat().st_size.to_bytes(8, "little"))
            except OSError as error:
                raise DataError(f"image {path} is gone: it was there when the folder was listed") from error
        return digest.hexdigest()[:16]


def decode(file: Path | BinaryIO, name: str) -> Image.Image:
    """The picture in a file as RGB; raises `DataError` about `name` where it cannot be decoded, `FileNotFoundError`
    where it is not there."""
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is twice the size that it warns of, which some cameras reach.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return to_rgb(image)
    except FileNotFoundError:
        raise
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow would name an object of Python's.
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise DataError(f"cannot decode image {name}: remove or replace it ({reason})") from error


class Prepared(Dataset):
    """`images[indices]` as (uint8 tensor (3, s, s), label), ready for a `DataLoader`."""

    def __init__(self, images: Images, preprocessing: Preprocessing, indices: np.ndarray | None = None) -> None:
        self.images = images
        self.preprocessing = preprocessing
        self.indices = np.arange(len(images)) if indices is None else np.asarray(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = int(self.indices[position])
        return self.preprocessing.to_uint8(self.images.picture(index)), int(self.images.labels[index])


class _Loader(DataLoader):
    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except DataError as error:
            # A worker process hands its whole traceback back as the message; the last line is ours.
            raise DataError(str(error).strip().splitlines()[-1].split("DataError: ")[-1]) from error


def loader(dataset: Dataset, batch_size: int, workers: int = 0) -> DataLoader:
    """Batches of `dataset` in order."""
    return _Loader(dataset, batch_size, num_workers=workers, persistent_workers=workers > 0)


def in_memory(dataset: Prepared, workers: int = 0) -> tuple[Tensor, Tensor]:
    """All of `dataset` as (n, 3, s, s) uint8 and (n,) int64; of several processes each reads a part."""
    size = dataset.preprocessing.image_size
    images = torch.zeros(len(dataset), 3, size, size, dtype=torch.uint8)
    labels = torch.zeros(len(dataset), dtype=torch.int64)
    own = ranks.share(len(dataset))
    position = own.start
    for batch, batch_labels in track(loader(Subset(dataset, range(len(dataset))[own]), 256, workers), "loading images"):
        images[position : position + len(batch)] = batch
        labels[position : position + len(batch)] = batch_labels
        position += len(batch)
    ranks.sum_(images)
    ranks.sum_(labels)
    return images, labels


def one_line(error: Exception) -> str:
    """What `error` says, shortened."""
    return " ".join(str(error).split())[:120]
