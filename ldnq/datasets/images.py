"""Collections of labelled images: files on disk, or one array in memory."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ldnq import ranks
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

    def __init__(self, root: Path, paths: Sequence[str], labels: np.ndarray, class_names: Sequence[str]) -> None:
        self.root = root
        self.paths = np.array(paths)  # one array instead of a million Python strings in every worker
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names = tuple(class_names)

    def picture(self, index: int) -> Image.Image:
        path = self.root / str(self.paths[index])
        try:
            with warnings.catch_warnings():
                # Pillow's own limit is twice the size that it warns of, which some cameras reach.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    return to_rgb(image)
        except FileNotFoundError as error:
            raise DataError(f"image {path} is gone: it was there when the folder was listed") from error
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"cannot decode image {path}: remove or replace it ({one_line(error)})") from error

    def fingerprint(self) -> str:
        digest = hashlib.sha256("\n".join(self.paths.tolist()).encode(errors="surrogateescape"))
        # Sizes of a few hundred files tell two copies with equal names apart without touching a million.
        for index in np.linspace(0, len(self) - 1, min(len(self), 256)).astype(int):
            path = self.root / str(self.paths[index])
            try:
                digest.update(path.stat().st_size.to_bytes(8, "little"))
            except OSError as error:
                raise DataError(f"image {path} is gone: it was there when the folder was listed") from error
        return digest.hexdigest()[:16]


def class_folders(root: Path) -> FileImages:
    """`root/<class>/…/image` as labelled images, classes in sorted order; raises `DataError` on an empty class."""
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"expected one folder per class in {root}, found none")
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = _image_files(root / name)
        if not found:
            raise DataError(f"class folder {root / name} holds no images: fill or remove it")
        paths += [f"{name}/{path}" for path in found]
        labels += [label] * len(found)
    return FileImages(root, paths, np.array(labels), classes)


def flat_folder(root: Path) -> FileImages:
    """The images directly in `root`, without labels."""
    paths = sorted(path.name for path in root.iterdir() if _is_image(path))
    if not paths:
        raise DataError(f"expected images or class folders in {root}, found none")
    return FileImages(root, paths, np.full(len(paths), UNLABELLED), ())


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


def _image_files(folder: Path) -> list[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if _is_image(path))
    return sorted(path.as_posix() for path in files if not any(part.startswith(".") for part in path.parts))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()


def one_line(error: Exception) -> str:
    """What `error` says, shortened."""
    return " ".join(str(error).split())[:120]
