"""Names by the million."""

from collections.abc import Iterable, Iterator

import numpy as np


class Names:
    """Strings, held as two arrays instead of a million objects in every worker: `text` uint8, all of them in UTF-8 with
    a line feed between one and the next, and `ends` (n,) int64, where each of them ends."""

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text = text
        self.ends = ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> "Names":
        """Those of `strings`; what a file's name has that is not UTF-8 is kept."""
        encoded = [string.encode(errors="surrogateescape") for string in strings]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls(np.frombuffer(b"\n".join(encoded), np.uint8), np.cumsum(lengths + 1) - 1)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] + 1 if index else 0
        return self.text[start : self.ends[index]].tobytes().decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))
