"""Image folders as lists of files, which are kept where they are long."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ldnq.datasets.images import EXTENSIONS, UNLABELLED, FileImages
from ldnq.datasets.index import Index, indexed, stamp
from ldnq.datasets.names import Names
from ldnq.errors import DataError
from ldnq.progress import track


def listed(root: Path) -> FileImages:
    """Images by class where `root` has folders, those of `root` itself otherwise."""
    return _images(root, "", lambda: _by_class(root) if _folders(root) else _flat(root))


def class_folders(root: Path) -> FileImages:
    """`root/<class>/…/image` as labelled images, classes in sorted order; raises `DataError` on an empty class."""
    return _images(root, "classes of", lambda: _by_class(root))


def flat_folder(root: Path) -> FileImages:
    """The images directly in `root`, without labels."""
    return _images(root, "files of", lambda: _flat(root))


def _images(root: Path, what: str, find: Callable[[], Index]) -> FileImages:
    found = indexed(f"{what} folder {root.resolve()}", root, find)
    return FileImages(root, found.names["paths"], found.arrays["labels"], tuple(found.names["classes"]))


def _by_class(root: Path) -> Index:
    stamps = {"": stamp(root)}
    classes = _folders(root)
    if not classes:
        raise DataError(f"expected one folder per class in {root}, found none")
    paths: list[str] = []
    counts: list[int] = []
    for name in track(classes, f"listing {root.name}"):
        found = _image_files(root, name, stamps)
        if not found:
            raise DataError(f"class folder {root / name} holds no images: fill or remove it")
        paths += sorted(found)
        counts.append(len(found))
    labels = np.repeat(np.arange(len(classes)), counts)
    return Index({"paths": Names.of(paths), "classes": Names.of(classes)}, {"labels": labels}, stamps)


def _flat(root: Path) -> Index:
    stamps = {"": stamp(root)}
    with os.scandir(root) as entries:
        paths = sorted(entry.name for entry in entries if _is_image(entry))
    if not paths:
        raise DataError(f"expected images, class folders or uncompressed tar shards in {root}, found none")
    labels = np.full(len(paths), UNLABELLED)
    return Index({"paths": Names.of(paths), "classes": Names.of(())}, {"labels": labels}, stamps)


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _image_files(root: Path, folder: str, stamps: dict[str, tuple[int, int]]) -> list[str]:
    """Paths from `root` of all images below `folder`; notes the stamps of the folders."""
    found, left = [], [folder]
    while left:
        folder = left.pop()
        # Before it is read: what comes while it is read makes the stamp another.
        stamps[folder] = stamp(root / folder)
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}"
                if _is_image(entry):
                    found.append(path)
                elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                    left.append(path)
    return found


def _is_image(entry: os.DirEntry) -> bool:
    """A file by its kind in the folder's own list, so that no file has to be asked."""
    if entry.name.startswith(".") or os.path.splitext(entry.name)[1].lower() not in EXTENSIONS:
        return False
    try:
        return entry.is_file()
    except OSError:  # links that go round in circles
        return False
