"""Tar shards in WebDataset's form: an image and its label side by side, such as `0001.jpg` and `0001.cls`."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ldnq.datasets.images import UNLABELLED, Images, decode
from ldnq.datasets.index import Index, indexed, stamp
from ldnq.datasets.names import Names
from ldnq.datasets.samples import samples
from ldnq.datasets.shard_files import find_shards
from ldnq.errors import DataError, shorten
from ldnq.progress import track

CLASSES = ("classes.txt", "classes.json")


class ShardImages(Images):
    """Images within uncompressed `shards`, where an index has found them: image i, called `files[i]`, is `sizes[i]`
    bytes from `offsets[i]` on of the shard of number `numbers[i]`."""

    def __init__(self, shards: Sequence[Path], found: Index, class_names: Sequence[str]) -> None:
        self.shards = tuple(shards)
        self.files = found.names["files"]
        self.numbers, self.offsets, self.sizes = (found.arrays[name] for name in ("numbers", "offsets", "sizes"))
        self.labels = found.arrays["labels"]
        self.class_names = tuple(class_names)

    def picture(self, index: int) -> Image.Image:
        shard = self.shards[self.numbers[index]]
        try:
            with shard.open("rb", buffering=0) as file:
                file.seek(self.offsets[index])
                content = file.read(self.sizes[index])
        except FileNotFoundError as error:
            raise DataError(f"shard {shard} is gone: it was there when its images were listed") from error
        return decode(io.BytesIO(content), f"{self.files[index]} of shard {shard}")

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.files.text.tobytes())
        for array in (self.numbers, self.sizes, self.labels):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def load_shards(root: Path, split: str, num_classes: int | None) -> ShardImages | None:
    """The images of `split` in the shards that `root` is said to hold; None where none are for testing.

    Classes are called as `classes.txt` or `classes.json` beside the shards says, else by their numbers, of which there
    are `num_classes` or as many as the largest label tells. Raises `DataError` where shards are missing, empty or
    damaged, or where labels are.
    """
    shards, folder = find_shards(root)
    if not shards[split]:
        if split == "test":
            return None
        raise DataError(f"expected shards to train on in {root}, found {shorten([p.name for p in shards['test']], 2)}")
    paths = shards[split]
    key = "\n".join(["shards", *(str(path.resolve()) for path in paths)])
    found = indexed(key, Path(), lambda: _read_headers(paths))
    labels = found.arrays["labels"]
    if labels.min() == UNLABELLED:
        if split == "test":
            raise DataError(f"expected labels (.cls) in the shards to test on, found none in {paths[0]}")
        names: Sequence[str] = ()
    else:
        names = _class_names(folder, int(labels.max()) + 1, num_classes)
    return ShardImages(paths, found, names)


def _read_headers(shards: Sequence[Path]) -> Index:
    """Where the images are, without reading any; raises `DataError` where a shard has none or only some have labels."""
    stamps, names, rows = {}, [], []
    for number, shard in enumerate(track(shards, "listing shards", lambda path: path.name)):
        stamps[str(shard.resolve())] = stamp(shard)
        found = list(samples(shard))
        if not found:
            raise DataError(f"shard {shard} holds no images: fill or remove it")
        names += [sample.name for sample in found]
        rows += [(number, sample.offset, sample.size, sample.label) for sample in found]
    numbers, offsets, sizes, labels = np.array(rows, dtype=np.int64).T
    without = labels == UNLABELLED
    if without.any() and not without.all():
        shard, count = shards[numbers[without][0]], int(without.sum())
        raise DataError(f"expected a label (.cls) for every image or for none, found {count:,} without, as in {shard}")
    arrays = {"numbers": numbers, "offsets": offsets, "sizes": sizes, "labels": labels}
    return Index(
        {"files": Names.of(names)}, {name: np.ascontiguousarray(array) for name, array in arrays.items()}, stamps
    )


def _class_names(folder: Path, num_labels: int, num_classes: int | None) -> tuple[str, ...]:
    """Those of a file in `folder`, else numbers; raises `DataError` where they are fewer than labels."""
    path = next((path for name in CLASSES if (path := folder / name).is_file()), None)
    names = _read_names(path) if path else tuple(map(str, range(num_classes or num_labels)))
    if num_labels > len(names):
        where = f"as many as {path} names" if path else "as many as the dataset has"
        raise DataError(f"expected labels below {len(names)}, {where}, found {num_labels - 1} in {folder}")
    return names


def _read_names(path: Path) -> tuple[str, ...]:
    """A line each, or JSON: a list, or numbers by name."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        found = json.loads(text)
        if isinstance(found, dict) and sorted(found.values()) == list(range(len(found))):
            found = sorted(found, key=found.__getitem__)
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            return tuple(found)
    except (ValueError, TypeError):
        pass  # neither text nor JSON, or of values that have no order
    raise DataError(f"expected the names of classes in {path}, a JSON list or numbers from 0 by name, found neither")
