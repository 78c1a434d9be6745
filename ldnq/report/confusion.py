"""Which class of the float network became which of the quantized one's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldnq.details import Outcomes

# Of classes in the table, and of pairs in the list.
MOST = 12


@dataclass(frozen=True)
class Confusion:
    """`counts` (k, k) of images by the float network's class (rows) and the quantized network's (columns), for the
    `names` of k classes: all, or of many those between which most images move; the `pairs` (from, to, images) that are
    most frequent of all."""

    names: tuple[str, ...]
    counts: np.ndarray
    pairs: tuple[tuple[str, str, int], ...]

    @property
    def largest_change(self) -> int:
        """The largest count off the diagonal."""
        return int((self.counts - np.diag(np.diag(self.counts))).max(initial=0))

    @classmethod
    def of(cls, outcomes: Outcomes, class_names: Sequence[str]) -> "Confusion":
        """From what both networks say; of 1,000 classes only those that images move between are looked at."""
        pairs, counts = np.unique(np.stack([outcomes.teacher, outcomes.student]), axis=1, return_counts=True)
        moved = pairs[0] != pairs[1]
        frequent = [n for n in np.argsort(-counts, kind="stable") if moved[n]]
        chosen = _between(pairs.T[frequent].tolist(), len(class_names))
        place = {label: position for position, label in enumerate(chosen)}
        table = np.zeros((len(chosen), len(chosen)), np.int64)
        for before, after, count in zip(*pairs.tolist(), counts):
            if before in place and after in place:
                table[place[before], place[after]] = count
        named = [(class_names[pairs[0, n]], class_names[pairs[1, n]], int(counts[n])) for n in frequent[:MOST]]
        return cls(tuple(class_names[label] for label in chosen), table, tuple(named))


def _between(pairs: Sequence[Sequence[int]], count: int) -> list[int]:
    """Of `count` classes all, or of too many those of the foremost `pairs`."""
    if count <= MOST:
        return list(range(count))
    chosen: set[int] = set()
    for pair in pairs:
        if len(chosen | set(pair)) <= MOST:
            chosen |= set(pair)
    return sorted(chosen)


@dataclass(frozen=True)
class Changes:
    """How many images the quantized network classifies otherwise than the float one, by who is right."""

    total: int
    broken: int
    mended: int
    both_wrong: int

    @classmethod
    def of(cls, outcomes: Outcomes) -> "Changes":
        """Counted over the test images."""
        changed = outcomes.teacher != outcomes.student
        was, became = (classes == outcomes.labels for classes in (outcomes.teacher, outcomes.student))
        groups = (changed, changed & was, changed & became, changed & ~was & ~became)
        return cls(*(int(group.sum()) for group in groups))
