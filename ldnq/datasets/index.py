"""Indices of large collections, made once and read by every later run and process, as long as nothing has changed."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ldnq.datasets.names import Names
from ldnq.files import replacing

log = logging.getLogger(__name__)

FORMAT_VERSION = "1"
# Images: fewer are found as fast as their index is read.
FEWEST = 10_000
# Nanoseconds: what has changed within so many may change again without another time stamp.
TICK = 2_000_000_000


@dataclass(frozen=True)
class Index:
    """What was found of a collection: `names` and `arrays` as its reader wants them, one entry an image in each of
    `arrays`. `stamps` tell whether it is still so: of files or folders, by their paths below the collection's root."""

    names: Mapping[str, Names]
    arrays: Mapping[str, np.ndarray]
    stamps: Mapping[str, tuple[int, int]]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))


def stamp(path: str | os.PathLike) -> tuple[int, int]:
    """The time of the last change in nanoseconds and, of a file, its bytes. A folder changes when an entry comes, goes
    or gets another name."""
    found = os.stat(path)
    return found.st_mtime_ns, 0 if os.path.isdir(path) else found.st_size


def indexed(key: str, root: Path, find: Callable[[], Index]) -> Index:
    """What `find` finds below `root`, or what it found earlier under the same `key` where nothing has changed since.

    Of several processes one finds and the others wait for it. Where nothing can be kept every process finds by itself.
    """
    path = cache_folder() / f"index-{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}"
    if known := _current(path, root):
        return known
    with _alone(path):
        if known := _current(path, root):
            return known
        found = find()
        if len(found) >= FEWEST and time.time_ns() - max(changed for changed, _ in found.stamps.values()) > TICK:
            _write(path, found)
    return found


def cache_folder() -> Path:
    """`$LDNQ_CACHE`, else `ldnq` in the user's folder of caches."""
    if folder := os.environ.get("LDNQ_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "ldnq"


def _current(path: Path, root: Path) -> Index | None:
    """The index in the file `path`, if it is one and nothing has changed since it was made."""
    try:
        index = _read(path)
        if all(stamp(root / name) == expected for name, expected in index.stamps.items()):
            log.debug("%d images of %s, as the index %s has them", len(index), root, path)
            return index
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        pass  # none, damaged, or of something that is gone: another takes its place
    return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from making the same index; where there is no place to keep it none waits."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("waiting for another process that lists the same images")
            lock.acquire()
    except OSError as error:
        log.debug("no index in %s: %s", path.parent, error)
        yield
        return
    try:
        yield
    finally:
        path.with_suffix(".lock").unlink(missing_ok=True)
        lock.release()


def _read(path: Path) -> Index:
    with safe_open(path, "np") as file:
        if file.metadata()["version"] != FORMAT_VERSION:
            raise ValueError("of another version")
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        stamps = {name: tuple(values) for name, values in json.loads(file.metadata()["stamps"]).items()}
    texts = [name.removesuffix(" text") for name in found if name.endswith(" text")]
    names = {name: Names(found.pop(f"{name} text"), found.pop(f"{name} ends")) for name in texts}
    return Index(names, found, stamps)


def _write(path: Path, index: Index) -> None:
    arrays = dict(index.arrays)
    for name, names in index.names.items():
        arrays |= {f"{name} text": names.text, f"{name} ends": names.ends}
    metadata = {"version": FORMAT_VERSION, "stamps": json.dumps(index.stamps)}
    try:
        with replacing(path) as temporary:
            save_file(arrays, temporary, metadata)
    except OSError as error:
        log.warning("%d images: cannot keep their index in %s: %s", len(index), path.parent, error.strerror)
    else:
        log.info("%d images: their index is kept in %s, for as long as nothing changes", len(index), path)
