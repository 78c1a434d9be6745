"""Calibration sets: small, uniform, reproducible, and only ever used with the images they were drawn from."""

import logging
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy import stats

from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages, CalibrationSet, default_path, draw, load_or_draw
from ldnq.config import CalibrationConfig
from ldnq.datasets.images import ArrayImages
from ldnq.errors import DataError, UsageError


def images(n: int, labels=None, shade: int = 0) -> ArrayImages:
    labels = np.arange(n) % 10 if labels is None else np.asarray(labels)
    return ArrayImages(np.full((n, 1, 1, 3), shade), labels, [str(label) for label in np.unique(labels)])


def unlabelled(n: int) -> ArrayImages:
    return ArrayImages(np.zeros((n, 1, 1, 3)), np.full(n, -1), ())


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A fresh current folder, so that calib_data/ is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("total", "options", "expected"),
    [
        (20_000, {}, 200),
        (20_000, {"ratio": 0.05}, 1000),
        (20_049, {}, 200),
        (20_051, {}, 201),
        (5_000, {}, 100),
        (60, {}, 60),
        (60, {"ratio": 1.0}, 60),
        (5_000, {"samples": 7}, 7),
        (5_000, {"samples": 5_000}, 5_000),
        (5_000, {"samples": 300, "ratio": 0.5}, 300),
    ],
    ids=[
        "one-percent", "five-percent", "rounded-down", "rounded-up", "at-least-100", "all-of-few", "all", "samples",
        "all-by-samples", "samples-over-ratio",
    ],
)  # fmt: skip
def test_as_many_images_are_drawn_as_were_asked_for(total, options, expected):
    drawn = draw(images(total), "toy", CalibrationConfig(**options))
    assert len(drawn.indices) == expected
    assert drawn.ratio == pytest.approx(expected / total)


@pytest.mark.parametrize("stratified", [False, True], ids=["uniform", "stratified"])
@pytest.mark.parametrize("samples", [1, 99, 250], ids=["one", "some", "all"])
def test_no_image_is_drawn_twice_and_indices_ascend(samples, stratified):
    for seed in range(5):
        drawn = draw(images(250), "toy", CalibrationConfig(samples=samples, seed=seed, stratified=stratified))
        assert (np.diff(drawn.indices) > 0).all()
        assert drawn.indices.min() >= 0
        assert drawn.indices.max() < 250


def test_more_images_than_there_are_is_an_error():
    with pytest.raises(UsageError, match=r"at most 50 calibration images.*got 51"):
        draw(images(50), "toy", CalibrationConfig(samples=51))


def test_the_least_number_is_announced_where_it_replaces_the_ratio(caplog):
    with caplog.at_level(logging.WARNING, logger="ldnq"):
        draw(images(5_000), "toy", CalibrationConfig())
    assert "1% of 5000 images is 50: taking 100 (2.0%) instead" in caplog.text
    caplog.clear()
    draw(images(10_000), "toy", CalibrationConfig())
    draw(images(5_000), "toy", CalibrationConfig(samples=3))
    assert not caplog.records


def test_every_image_is_equally_likely():
    collection = images(40)
    counts = np.zeros(40)
    for seed in range(400):
        counts[draw(collection, "toy", CalibrationConfig(samples=10, seed=seed)).indices] += 1
    assert counts.sum() == 4000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_seed_decides_the_draw():
    collection = images(2_000)
    first, again, other = (draw(collection, "toy", CalibrationConfig(seed=seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.indices, again.indices)
    assert not np.array_equal(first.indices, other.indices)
    assert (first.seed, other.seed) == (5, 6)


def test_labels_are_not_looked_at_unless_asked_for():
    config = CalibrationConfig(samples=30)
    sorted_labels = images(200, np.repeat([0, 1], 100))
    np.testing.assert_array_equal(
        draw(sorted_labels, "toy", config).indices, draw(unlabelled(200), "toy", config).indices
    )


@pytest.mark.parametrize(
    ("counts", "wanted", "expected"),
    [
        ((50, 30, 20), 10, (5, 3, 2)),
        ((10, 6, 5), 10, (5, 3, 2)),
        ((10, 6, 5), 21, (10, 6, 5)),
        ((97, 2, 1), 3, (3, 0, 0)),
        ((10,) * 10, 50, (5,) * 10),
    ],
    ids=["proportional", "largest-remainders", "all", "rare-classes", "balanced"],
)
def test_a_stratified_draw_takes_each_class_in_proportion(counts, wanted, expected):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    drawn = draw(images(len(labels), labels), "toy", CalibrationConfig(samples=wanted, stratified=True))
    assert np.bincount(labels[drawn.indices], minlength=len(counts)).tolist() == list(expected)


def test_a_stratified_draw_is_random_within_each_class():
    collection = images(100, np.repeat([0, 1], 50))
    draws = [draw(collection, "toy", CalibrationConfig(samples=10, seed=s, stratified=True)).indices for s in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_a_stratified_draw_needs_labels():
    with pytest.raises(UsageError, match="leave out --stratified"):
        draw(unlabelled(200), "toy", CalibrationConfig(stratified=True))


@pytest.mark.parametrize("stratified", [False, True], ids=["uniform", "stratified"])
def test_a_set_survives_its_file(tmp_path, stratified):
    drawn = draw(images(3_000), "toy", CalibrationConfig(ratio=0.1, seed=11, stratified=stratified))
    path = tmp_path / "new" / "folder" / "set.h5"
    drawn.save(path)
    found = CalibrationSet.load(path)
    np.testing.assert_array_equal(found.indices, drawn.indices)
    for name in ("dataset", "fingerprint", "ratio", "seed", "stratified"):
        assert getattr(found, name) == getattr(drawn, name), name
    assert [entry.name for entry in path.parent.iterdir()] == ["set.h5"]


def test_the_file_holds_indices_and_no_images(tmp_path):
    path = tmp_path / "set.h5"
    draw(images(500), "toy", CalibrationConfig(samples=4)).save(path)
    with h5py.File(path) as file:
        assert list(file) == ["indices"]
        assert file["indices"].shape == (4,)


def _text(path):
    path.write_text("1\n2\n3\n")


def _empty(path):
    path.write_bytes(b"")


def _other_h5(path):
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(3)


def _no_indices(path):
    _set().save(path)
    with h5py.File(path, "a") as file:
        del file["indices"]


def _truncated(path):
    _set().save(path)
    path.write_bytes(path.read_bytes()[:200])


def _set() -> CalibrationSet:
    return draw(images(50), "toy", CalibrationConfig(samples=5))


@pytest.mark.parametrize("spoil", [_text, _empty, _other_h5, _no_indices, _truncated], ids=lambda f: f.__name__[1:])
def test_another_file_is_not_taken_for_a_calibration_set(tmp_path, spoil):
    path = tmp_path / "set.h5"
    spoil(path)
    with pytest.raises(DataError, match=r"set\.h5 is not a calibration set"):
        CalibrationSet.load(path)


def test_a_file_of_a_later_version_is_named_as_such(tmp_path):
    path = tmp_path / "set.h5"
    _set().save(path)
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(DataError, match="has format 99, expected 1"):
        CalibrationSet.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no calibration set .*absent\.h5: draw one with 'ldnq sample'"):
        CalibrationSet.load(tmp_path / "absent.h5")


def test_a_set_fits_the_images_it_was_drawn_from():
    collection = images(50)
    draw(collection, "toy", CalibrationConfig(samples=5)).check("toy", collection, Path("set.h5"))


@pytest.mark.parametrize(
    ("dataset", "collection"),
    [("other", images(50)), ("toy", images(50, shade=1)), ("toy", images(51)), ("toy", unlabelled(50))],
    ids=["another-name", "other-pixels", "other-count", "other-labels"],
)
def test_a_set_of_another_dataset_is_refused(dataset, collection):
    with pytest.raises(DataError, match=r"set\.h5 was drawn from toy .*--resample or another --calibration"):
        _set().check(dataset, collection, Path("set.h5"))


@pytest.mark.parametrize("indices", [[], [-1, 3], [0, 50]], ids=["none", "negative", "beyond-the-last"])
def test_indices_outside_the_images_are_refused(indices):
    drawn = replace(_set(), indices=np.array(indices, dtype=np.int64))
    with pytest.raises(DataError, match="points outside the 50 training images"):
        drawn.check("toy", images(50), Path("set.h5"))


def test_a_set_is_kept_and_used_again(elsewhere):
    config = CalibrationConfig(samples=20, seed=2)
    drawn, path = load_or_draw(images(300), "toy", config)
    assert path.resolve() == (elsewhere / "calib_data" / "toy-n20-s2.h5").resolve()
    np.testing.assert_array_equal(CalibrationSet.load(path).indices, drawn.indices)
    # Another draw put in its place is what is used: the file counts, not the seed.
    kept = replace(drawn, indices=np.array([1, 2, 3]))
    kept.save(path)
    found, _ = load_or_draw(images(300), "toy", config)
    assert found.indices.tolist() == [1, 2, 3]
    fresh, _ = load_or_draw(images(300), "toy", replace(config, resample=True))
    np.testing.assert_array_equal(fresh.indices, drawn.indices)
    np.testing.assert_array_equal(CalibrationSet.load(path).indices, drawn.indices)


def test_a_kept_set_is_refused_once_the_images_have_changed(elsewhere):
    config = CalibrationConfig(samples=20)
    load_or_draw(images(300), "toy", config)
    with pytest.raises(DataError, match="use --resample"):
        load_or_draw(images(300, shade=9), "toy", config)
    found, _ = load_or_draw(images(300, shade=9), "toy", replace(config, resample=True))
    assert found.fingerprint == images(300, shade=9).fingerprint()


def test_a_named_file_is_used_and_nothing_is_drawn(elsewhere):
    mine = elsewhere / "mine.h5"
    draw(images(300), "toy", CalibrationConfig(samples=6, seed=9)).save(mine)
    found, path = load_or_draw(images(300), "toy", CalibrationConfig(calibration="mine.h5"))
    assert (len(found.indices), found.seed, path) == (6, 9, Path("mine.h5"))
    assert not (elsewhere / "calib_data").exists()


def test_a_named_file_that_is_missing_is_not_drawn(elsewhere):
    with pytest.raises(DataError, match=r"no calibration set mine\.h5"):
        load_or_draw(images(300), "toy", CalibrationConfig(calibration="mine.h5"))
    assert list(elsewhere.iterdir()) == []


def test_draws_that_differ_are_kept_in_files_that_differ():
    options = [{}, {"seed": 1}, {"ratio": 0.05}, {"samples": 5}, {"samples": 6}, {"stratified": True}]
    paths = {default_path("toy", CalibrationConfig(**values)) for values in options}
    assert len(paths | {default_path("other", CalibrationConfig())}) == len(options) + 1


def numbered(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 8, 8).contiguous()


def held(n: int, augmentation=None, batch_size: int = 4) -> CalibrationImages:
    return CalibrationImages(
        numbered(n), lambda batch: batch.float() / 2, augmentation, batch_size, torch.device("cpu")
    )


def test_batches_are_all_images_once_in_order_and_normalized():
    batches = list(held(10).batches())
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert len(held(10)) == 10
    torch.testing.assert_close(torch.cat(batches), numbered(10).float() / 2)


def test_random_batches_go_round_after_round_through_all_images():
    stream = held(10).random_batches(4, torch.Generator().manual_seed(0))
    rounds = [torch.cat([next(stream) for _ in range(3)])[:, 0, 0, 0] * 2 for _ in range(2)]
    assert all(sorted(order.tolist()) == list(range(10)) for order in rounds)
    assert rounds[0].tolist() != rounds[1].tolist()


def test_random_batches_repeat_with_the_seed_and_are_augmented():
    def first(augmentation):
        return next(held(10, augmentation).random_batches(4, torch.Generator().manual_seed(0)))

    assert torch.equal(first(Augmentation(8)), first(Augmentation(8)))
    plain, shifted = first(None), first(Augmentation(8))
    assert shifted.shape == plain.shape
    assert not torch.equal(shifted, plain)
    assert torch.equal(shifted.amax((1, 2, 3)), plain.amax((1, 2, 3)))


@pytest.mark.parametrize(("total", "share", "kept"), [(10, 0.2, 8), (10, 0.01, 9), (3, 0.9, 1), (2, 0.5, 1)])
def test_a_share_of_the_images_is_set_apart(total, share, kept):
    def split(seed):
        images = held(total).set_apart(share, torch.Generator().manual_seed(seed))
        return [part.images[:, 0, 0, 0].tolist() for part in (images, images.held_out)]

    learned, judged = split(0)
    assert len(learned) == kept
    assert sorted(learned + judged) == numbered(total)[:, 0, 0, 0].tolist()
    assert total < 10 or split(1)[0] != learned


def test_of_a_single_image_nothing_is_set_apart():
    assert held(1).set_apart(0.5, torch.Generator()).held_out is None
