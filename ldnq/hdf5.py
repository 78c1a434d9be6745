"""HDF5 files that are sealed when they are written, and looked at before they are believed."""

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ldnq.files import replacing

# What follows the last byte of HDF5's own: this, then the SHA-256 of all that is before it.
SEAL = b"ldnqseal"
# What a global heap begins with, its own size included, and what each of its objects does.
HEAP = re.compile(rb"GCOL\x01.{11}", re.DOTALL)
OBJECT = 16
# Deflate cannot do better than a byte for this many.
MOST_INFLATED = 1032


@contextmanager
def created(path: Path, **options: Any) -> Iterator[h5py.File]:
    """An HDF5 file to fill; sealed, it takes the place of `path` when the block ends without error."""
    content = io.BytesIO()  # the library does not always say that a disk is full
    with h5py.File(content, "w", **options) as file:
        yield file
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue() + SEAL + hashlib.sha256(content.getvalue()).digest())


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file for reading, once its seal is seen to be whole: damage never reaches the HDF5 library.

    A file without a seal is opened as it is. Raises `ValueError` where a seal does not match or the library would not
    come to an end, `OSError` where the file is no HDF5.
    """
    content = path.read_bytes()
    seal = content.rfind(SEAL, -len(SEAL) - hashlib.sha256().digest_size)
    if seal >= 0:
        if hashlib.sha256(memoryview(content)[:seal]).digest() != content[seal + len(SEAL) :]:
            raise ValueError("the seal does not match")
        content = content[:seal]
    _check_heaps(content)
    with h5py.File(io.BytesIO(content), "r") as file:
        yield file


def _check_heaps(content: bytes) -> None:
    """Raise `ValueError` where a global heap has free space of no size: looking for the next object behind it the
    library turns in circles (HDF5 file format specification, III.E)."""
    for found in re.finditer(HEAP, content):
        place = found.end()
        end = found.start() + int.from_bytes(content[place - 8 : place], "little")
        while place + OBJECT <= end <= len(content):
            index, size = (int.from_bytes(content[place + a : place + b], "little") for a, b in ((0, 2), (8, 16)))
            step = OBJECT + -(-size // 8) * 8 if index else size
            if not step:
                raise ValueError("free space of no size")
            place += step


def read_flat(file: h5py.File, name: str, dtype: str) -> np.ndarray:
    """The dataset `name`, flat and of this `dtype`; raises `ValueError` where it is another thing, lies in another
    file, or claims to be larger than what it is stored in can hold."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        raise ValueError(f"{name} is no dataset of this file")
    dataset = file[name]
    if dataset.ndim != 1 or (dataset.size and dataset.dtype != np.dtype(dtype)):
        raise ValueError(f"{name} is not flat, or not {dtype}")
    stored, most = dataset.id.get_storage_size(), 1
    filters = dataset.id.get_create_plist().get_nfilters()
    if dataset.external or dataset.is_virtual or filters != (dataset.compression is not None):
        raise ValueError(f"{name} is stored elsewhere, or by a filter of others")
    if dataset.compression == "gzip":
        most = MOST_INFLATED
    elif dataset.compression:
        raise ValueError(f"{name} is compressed by {dataset.compression}")
    whole = dataset.chunks in (None, dataset.shape)
    if not whole or stored > file.id.get_filesize() or dataset.size * dataset.dtype.itemsize > most * stored:
        raise ValueError(f"{name} claims more than there is")
    return dataset[:]
