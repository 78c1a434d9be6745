"""Values that wait until they are needed again: in memory as far as it goes, in a file beyond."""

import io
import tempfile
import weakref
from collections.abc import Hashable, Mapping
from typing import IO, Any

import torch
from torch import Tensor

from ldnq.errors import DataError


class Store:
    """Holds up to `limit` bytes in memory; what is given to it beyond goes into a temporary file without a name, which
    is gone with the process, however that ends."""

    def __init__(self, limit: float = float("inf")) -> None:
        self.limit = limit
        self.bytes_in_memory = self.bytes_in_file = 0
        self._file: IO[bytes] | None = None
        self._gaps: list[slice] = []
        self._end = 0

    def hold(self, values: Mapping[Hashable, Any]) -> "Held":
        """The `values`, of which tensors need room. Raises `DataError` where the file cannot be written."""
        return Held(self, values)

    def write(self, data: memoryview) -> slice:
        """Where in the file `data` is."""
        gap = next((gap for gap in self._gaps if gap.stop - gap.start >= len(data)), None)
        if gap:
            self._gaps.remove(gap)
            place = slice(gap.start, gap.start + len(data))
            self.release(slice(place.stop, gap.stop))
        else:
            place = slice(self._end, self._end + len(data))
            self._end = place.stop
        try:
            file = self._open()
            file.seek(place.start)
            file.write(data)
            file.flush()
        except OSError as error:
            raise DataError(
                f"cannot keep values of the network in {tempfile.gettempdir()} ({error.strerror}): make room there, "
                "let TMPDIR name another folder, or give more --max-memory"
            ) from error
        self.bytes_in_file += len(data)
        return place

    def read(self, place: slice) -> bytes:
        """What was written there."""
        file = self._open()
        file.seek(place.start)
        return file.read(place.stop - place.start)

    def release(self, place: slice) -> None:
        """Let others write there."""
        if place.stop > place.start:
            self._gaps.append(place)

    def _open(self) -> IO[bytes]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="ldnq-")  # noqa: SIM115, it lives as long as the store
            weakref.finalize(self, self._file.close)
        return self._file


class Held:
    """What a store holds, until it is freed."""

    def __init__(self, store: Store, values: Mapping[Hashable, Any]) -> None:
        self._store = store
        self._values = dict(values)
        tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        self._bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        self._place: slice | None = None
        if store.bytes_in_memory + self._bytes <= store.limit:
            store.bytes_in_memory += self._bytes
            return
        self._keys = list(tensors)
        buffer = io.BytesIO()
        # Without a copy a part of a tensor would be saved with all of it.
        torch.save([tensor.clone() for tensor in tensors.values()], buffer)
        self._values.update(dict.fromkeys(tensors))
        self._place = store.write(buffer.getbuffer())

    def values(self) -> dict[Any, Any]:
        """Those that were given, or, out of the file, copies of them."""
        if self._place is None:
            return dict(self._values)
        return self._values | dict(zip(self._keys, torch.load(io.BytesIO(self._store.read(self._place)))))

    def free(self) -> None:
        """Nobody will ask for them again."""
        if self._place is None:
            self._store.bytes_in_memory -= self._bytes
        else:
            self._store.bytes_in_file -= self._place.stop - self._place.start
            self._store.release(self._place)
