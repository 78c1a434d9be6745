"""The samples of a tar shard and where they lie, from its headers: files of one key side by side, `KEY.jpg`,
`KEY.cls`."""

import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from tarfile import TarFile, TarInfo
from typing import Any, NamedTuple

from ldnq.datasets.images import EXTENSIONS, UNLABELLED, one_line
from ldnq.errors import DataError
from ldnq.extras import require

# Of tar archives; one of zeros ends them.
BLOCK = 512
# Of WebDataset's own notes.
NOTES = re.compile(r"__[^/]*__($|/)")


class Sample(NamedTuple):
    """An image file of `size` bytes from `offset` on, and its label."""

    name: str
    offset: int
    size: int
    label: int


def samples(shard: Path) -> Iterator[Sample]:
    """All images of a `shard`, with the labels of their `.cls` files, in the order in which they lie there.

    Raises `DataError` where the archive is damaged, files of one key lie apart, or a label is no number.
    """
    group_by_keys = require("webdataset.tariterators", "webdataset").group_by_keys
    keys: set[str] = set()
    try:
        with tarfile.open(shard, "r:") as archive:
            files = ({"fname": member.name, "data": member, "__url__": str(shard)} for member in _members(archive))
            for group in group_by_keys(files):
                key = group["__key__"]
                if key in keys:
                    raise DataError(
                        f"expected the files of {key} side by side in shard {shard}, found them apart: write it anew "
                        "in the order of names (tar --sort=name)"
                    )
                keys.add(key)
                image = next((group[name] for suffix in EXTENSIONS if (name := suffix[1:]) in group), None)
                label = _label(archive, group, shard)
                if image is not None:
                    yield Sample(image.name, image.offset_data, image.size, label)
                elif label != UNLABELLED:
                    raise DataError(f"expected an image beside {key}.cls in shard {shard}, found none")
    except ValueError as error:  # of WebDataset, which begins with the name of a file that is there already
        name = str(error.args[0]).partition(":")[0]
        raise DataError(f"expected every file of shard {shard} once, found {name} twice") from error
    except tarfile.TarError as error:
        raise DataError(
            f"cannot read shard {shard} ({one_line(error)}): expected an uncompressed tar archive"
        ) from error


def _members(archive: TarFile) -> Iterator[TarInfo]:
    """All files; raises `ReadError` where the archive does not end as archives do, which `tarfile` takes for an end."""
    end = 0
    while (member := archive.next()) is not None:
        end = member.offset_data + -(-member.size // BLOCK) * BLOCK
        if member.isreg() and not NOTES.match(member.name):
            yield member
    archive.fileobj.seek(end)
    if archive.fileobj.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError(f"damaged or cut off at byte {end:,}")


def _label(archive: TarFile, group: Mapping[str, Any], shard: Path) -> int:
    if "cls" not in group:
        return UNLABELLED
    archive.fileobj.seek(group["cls"].offset_data)
    text = archive.fileobj.read(min(group["cls"].size, BLOCK)).decode(errors="replace").strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise DataError(f"expected the number of a class in {group['cls'].name} of shard {shard}, found {text[:40]!r}")
    return int(text)
