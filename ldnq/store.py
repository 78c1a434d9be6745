"""Values that wait until they are needed again: in memory as far as it goes, in files beyond."""

import shutil
import tempfile
import weakref
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldnq.errors import DataError


class Store:
    """Holds up to `limit` bytes in memory; what is given to it beyond goes into files of a temporary folder, which ends
    with the store."""

    def __init__(self, limit: float = float("inf")) -> None:
        self.limit = limit
        self.bytes_in_memory = self.files = 0
        self._folder: Path | None = None

    def hold(self, values: Mapping[Hashable, Any]) -> "Held":
        """The `values`, of which tensors need room. Raises `DataError` where a file cannot be written."""
        return Held(self, values)

    def new_path(self) -> Path:
        """Of a file that does not exist yet."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="ldnq-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.files += 1
        return self._folder / f"{self.files}.pt"


class Held:
    """What a store holds, until it is freed."""

    def __init__(self, store: Store, values: Mapping[Hashable, Any]) -> None:
        self._store = store
        self._values, self._path = dict(values), None
        tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        self._bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if store.bytes_in_memory + self._bytes <= store.limit:
            store.bytes_in_memory += self._bytes
            return
        self._path, self._bytes = store.new_path(), 0
        self._values.update(dict.fromkeys(tensors))
        self._keys = list(tensors)
        try:
            torch.save(list(tensors.values()), self._path)
        except (OSError, RuntimeError) as error:  # torch has no class of its own for a full disk
            raise DataError(
                f"cannot keep values of the network in {self._path.parent} ({' '.join(str(error).split())[:80]}): make "
                "room there, let TMPDIR name another folder, or give more --max-memory"
            ) from error

    def values(self) -> dict[Any, Any]:
        """Those that were given, or, out of a file, copies of them."""
        if self._path is None:
            return dict(self._values)
        return self._values | dict(zip(self._keys, torch.load(self._path, weights_only=True)))

    def free(self) -> None:
        """Nobody will ask for them again."""
        self._store.bytes_in_memory -= self._bytes
        if self._path:
            self._path.unlink()
