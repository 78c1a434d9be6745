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
    `names` of the k classes that change most; the `pairs` (from, to, images) that are most frequent of all."""

    names: tuple[str, ...]
    counts: np.ndarray
    pairs: tuple[tuple[str, str, int], ...]

    @property
    def largest_change(self) -> int:
        """The largest count off the diagonal."""
        return int((self.counts - np.diag(np.diag(self.counts))).max(initial=0))

    @classmethod
    def of(cls, outcomes: Outcomes, class_names: Sequence[str]) -> "Confusion":
        """From what both networks say; of 1,000 classes only those that change are looked at."""
        found, counts = np.unique(np.stack([outcomes.teacher, outcomes.student]), axis=1, return_counts=True)
        changed = found[0] != found[1]
        activity = np.zeros(len(class_names), np.int64)
        for classes in found:
            np.add.at(activity, classes[changed], counts[changed])
        chosen = np.sort(np.argsort(-activity, kind="stable")[:MOST])
        position = {int(label): place for place, label in enumerate(chosen)}
        table = np.zeros((len(chosen), len(chosen)), np.int64)
        for before, after, count in zip(*found.tolist(), counts):
            if before in position and after in position:
                table[position[before], position[after]] = count
        order = np.argsort(-counts * changed, kind="stable")[: min(MOST, int(changed.sum()))]
        pairs = tuple((class_names[found[0, n]], class_names[found[1, n]], int(counts[n])) for n in order)
        return cls(tuple(class_names[label] for label in chosen), table, pairs)


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
