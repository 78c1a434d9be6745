"""Which files are the shards of a split: those of a folder, or those that a pattern such as `train-{0000..0146}.tar`
names."""

import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ldnq.errors import DataError, UsageError, shorten
from ldnq.extras import require

SUFFIX = ".tar"
# Words in the names of shards or of their folder that tell what they are for; of several test sets the first is taken.
TRAIN = ("train", "training")
TEST = ("val", "test", "validation")
# Entries of a folder that are looked at for shards: one of shards holds little else, others may hold a million files.
LOOKED_AT = 1000


def holds_shards(root: Path) -> bool:
    """Whether `root` names shards, or is a folder of some or of `train` and `val` with some."""
    return root.suffix == SUFFIX or any(_tar_files(folder, LOOKED_AT) for folder in _folders(root))


def find_shards(root: Path) -> tuple[dict[str, list[Path]], Path]:
    """Shards by split, "train" and "test", and the folder that all lie in.

    Raises `DataError` where a pattern names some that are not there, or a name does not tell what a shard is for.
    """
    if root.suffix == SUFFIX:
        paths = _expand(root)
        folder = Path(os.path.commonpath([path.parent for path in paths]))
    else:
        paths, folder = [path for part in _folders(root) for path in _tar_files(part)], root
    return _by_split(paths, folder), folder


def _folders(root: Path) -> list[Path]:
    """Those of splits, or `root` itself. Archives beside folders are what people have unpacked."""
    return [folder for name in (*TRAIN, *TEST) if (folder := root / name).is_dir()] or [root]


def _expand(pattern: Path) -> list[Path]:
    words = [str(pattern)]
    if "{" in str(pattern):
        try:
            words = list(require("braceexpand", "webdataset").braceexpand(str(pattern)))
        except ValueError as error:
            raise UsageError(f"expected braces in pairs, such as train-{{0000..0146}}.tar, got {pattern}") from error
    paths = [Path(word) for word in words]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} shards of {pattern} are not there: {shorten(missing, 2)}")
    return paths


def _by_split(paths: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """By a word in the name of each shard, or else in that of its folder, which for the `folder` of all has to be the
    whole name; where no name says anything all are to train on."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        around = path.parent.name
        said = around if path.parent != folder or around in (*TRAIN, *TEST) else ""
        groups.setdefault(_word(path.stem) or _word(said), []).append(path)
    unnamed = groups.pop("", [])
    if unnamed and groups:
        other = next(iter(groups.values()))[0]
        raise DataError(f"expected train or val in the name of every shard, as in {other}, found {unnamed[0]}")
    train = [path for word in TRAIN for path in groups.get(word, [])]
    test = next((groups[word] for word in TEST if word in groups), [])
    return {"train": unnamed or train, "test": test}


def _word(name: str) -> str:
    """Of a name the word that tells what it is for, if there is one."""
    return next((word for word in re.split("[^a-z]+", name.lower()) if word in (*TRAIN, *TEST)), "")


def _tar_files(folder: Path, most: int | None = None) -> list[Path]:
    """In their order; of `most` entries of the folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, most) if entry.name.endswith(SUFFIX)]
    return [folder / name for name in sorted(names) if not name.startswith(".")]
