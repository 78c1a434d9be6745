"""The file of details, against what was put into it and what NumPy says."""

import numpy as np
import pytest

from ldnq.details import Details, LayerDetails, Outcomes
from ldnq.errors import DataError


def _layer(name, levels, iterations):
    rng = np.random.default_rng(len(name))
    levels = np.array(levels, np.float32)
    shares = rng.dirichlet(np.ones(len(levels))).astype(np.float32)
    return LayerDetails(name, levels, shares, rng.integers(0, 99, 8), 2.5, rng.random(iterations).astype(np.float32))


def _outcomes(n=200, classes=1000):
    rng = np.random.default_rng(0)
    labels, teacher, student = rng.integers(0, classes, (3, n))
    student = np.where(rng.random(n) < 0.5, teacher, student)
    # In sixteen bits, as they are kept.
    one, two = rng.random((2, n)).astype(np.float16).astype(np.float32)
    return Outcomes(labels, teacher, one, student, two)


def test_details_come_back_as_they_were(tmp_path):
    layers = (_layer("conv", [-1, 0, 1], 7), _layer("blocks.0.linear", [-4, -2, -1, 0, 1, 2, 4], 1))
    details = Details(layers, _outcomes(), ("ä", *map(str, range(999))), {31: b"picture", 7: b"another one"})
    details.save(tmp_path / "details.h5")
    found = Details.load(tmp_path / "details.h5")
    for ours, theirs in zip(layers, found.layers, strict=True):
        assert (ours.name, ours.reach) == (theirs.name, theirs.reach)
        for name in ("levels", "shares", "histogram", "errors"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    for name, values in vars(details.outcomes).items():
        assert np.array_equal(values, getattr(found.outcomes, name)), name
    assert found.class_names == details.class_names
    assert list(found.pictures.items()) == [(31, b"picture"), (7, b"another one")]


def test_a_run_without_test_images_has_no_outcomes(tmp_path):
    Details((_layer("conv", [-1, 0, 1], 3),)).save(tmp_path / "details.h5")
    assert Details.load(tmp_path / "details.h5").outcomes is None


def test_networks_that_agree_leave_no_pictures(tmp_path):
    outcomes = Outcomes(*np.ones((5, 4), np.int64))
    Details((_layer("conv", [-1, 0, 1], 3),), outcomes, ("a", "b"), {}).save(tmp_path / "details.h5")
    found = Details.load(tmp_path / "details.h5")
    assert (found.pictures, found.outcomes.agreement) == ({}, 100)
    assert len(outcomes.disagreements(9)) == 0


def test_the_largest_disagreements_are_those_of_which_both_are_sure():
    outcomes = _outcomes()
    differ = [n for n in range(200) if outcomes.teacher[n] != outcomes.student[n]]
    sure = {n: min(outcomes.teacher_confidence[n], outcomes.student_confidence[n]) for n in differ}
    assert outcomes.disagreements(10).tolist() == sorted(differ, key=lambda n: -sure[n])[:10]
    assert sorted(outcomes.disagreements(1000)) == differ
    assert outcomes.agreement == 100 - len(differ) / 2


@pytest.mark.parametrize("content", [b"", b"something else" * 99], ids=["empty", "no HDF5"])
def test_another_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "details.h5").write_bytes(content)
    with pytest.raises(DataError, match="does not hold the details of a run") as error:
        Details.load(tmp_path / "details.h5")
    assert "\n" not in str(error.value)
