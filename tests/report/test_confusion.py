"""Counts of changed classes, against scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from ldnq.details import Outcomes
from ldnq.report.confusion import MOST, Changes, Confusion


def _outcomes(classes, n=3000, changed=0.2):
    rng = np.random.default_rng(classes)
    labels, teacher, other = rng.integers(0, classes, (3, n))
    student = np.where(rng.random(n) < changed, other, teacher)
    return Outcomes(labels, teacher, np.ones(n), student, np.ones(n))


@pytest.mark.parametrize("classes", [2, 10, 12])
def test_of_few_classes_the_table_has_all(classes):
    outcomes = _outcomes(classes)
    found = Confusion.of(outcomes, [f"c{n}" for n in range(classes)])
    assert found.names == tuple(f"c{n}" for n in range(classes))
    expected = confusion_matrix(outcomes.teacher, outcomes.student, labels=range(classes))
    assert np.array_equal(found.counts, expected)
    assert found.largest_change == (expected - np.diag(np.diag(expected))).max()


def test_of_a_thousand_classes_it_has_those_between_which_most_images_move():
    outcomes = _outcomes(1000)
    # Far more often than anything else.
    frequent = [(7, 8, 50), (8, 7, 40), (900, 8, 30), (3, 999, 20)]
    start = 0
    for before, after, count in frequent:
        outcomes.teacher[start : start + count], outcomes.student[start : start + count] = before, after
        start += count
    found = Confusion.of(outcomes, [str(n) for n in range(1000)])
    whole = confusion_matrix(outcomes.teacher, outcomes.student, labels=range(1000))
    chosen = [int(name) for name in found.names]
    assert len(chosen) in (MOST - 1, MOST)
    assert {3, 7, 8, 900, 999} < set(chosen)
    assert np.array_equal(found.counts, whole[np.ix_(chosen, chosen)])
    assert [(int(before), int(after)) for before, after, _ in found.pairs[:4]] == [pair[:2] for pair in frequent]
    off = whole - np.diag(np.diag(whole))
    assert [count for *_, count in found.pairs] == sorted(off.flatten())[: -MOST - 1 : -1]


def test_changes_are_told_apart_by_who_is_right():
    labels = np.array([0, 0, 0, 1, 1])
    teacher, student = np.array([0, 0, 1, 0, 0]), np.array([0, 1, 0, 2, 0])
    found = Changes.of(Outcomes(labels, teacher, np.ones(5), student, np.ones(5)))
    assert (found.total, found.broken, found.mended, found.both_wrong) == (3, 1, 1, 1)


def test_networks_that_agree_have_no_pairs():
    classes = np.arange(6) % 3
    found = Confusion.of(Outcomes(classes, classes, np.ones(6), classes, np.ones(6)), "abc")
    assert (found.pairs, found.largest_change) == ((), 0)
