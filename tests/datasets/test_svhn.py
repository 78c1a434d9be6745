"""SVHN files of any number of images are read as torchvision reads the published ones, others are refused."""

import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from torchvision.datasets import SVHN

from ldnq.data import usual_root
from ldnq.datasets import datasets
from ldnq.errors import DataError

LABELS = {"train": (10, 1, 9, 3), "extra": (2, 10, 10, 4, 5), "test": (7, 10)}


def contents(labels, seed: int = 0) -> dict[str, np.ndarray]:
    """What a file of SVHN holds, of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
    return {"X": pixels, "y": np.array(labels, dtype=np.uint8)[:, None]}


@pytest.fixture
def root(tmp_path):
    """A folder with a few images of each part, compressed as the published ones."""
    for seed, (part, labels) in enumerate(LABELS.items()):
        savemat(tmp_path / f"{part}_32x32.mat", contents(labels, seed), do_compression=True)
    return tmp_path


def load(root, split="train", name="svhn", download=False):
    return datasets.get(name).load(root, split, download)


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_are_those_that_torchvision_reads(root, split, monkeypatch):
    monkeypatch.setattr(SVHN, "_check_integrity", lambda _: True)
    expected, found = SVHN(root, split), load(root, split)
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.class_names == tuple("0123456789")
    for index, (picture, _) in enumerate(expected):
        np.testing.assert_array_equal(np.array(found.picture(index)), np.array(picture))


def test_label_10_is_the_digit_0(root):
    assert load(root).labels.tolist() == [0, 1, 9, 3]


def test_pixels_are_not_copied(root):
    assert load(root).pixels.base.flags.f_contiguous


def test_extra_images_come_behind_those_of_train(root):
    images = load(root, name="svhn-extra")
    assert images.labels.tolist() == [0, 1, 9, 3, 2, 0, 0, 4, 5]
    stored = [loadmat(root / f"{part}_32x32.mat")["X"] for part in ("train", "extra")]
    np.testing.assert_array_equal(np.array(images.picture(3)), stored[0][..., 3])
    np.testing.assert_array_equal(np.array(images.picture(4)), stored[1][..., 0])


def test_extra_images_are_not_tested_on(root):
    assert load(root, "test", "svhn-extra").fingerprint() == load(root, "test").fingerprint()


def test_extra_images_lie_beside_the_others(monkeypatch, tmp_path):
    monkeypatch.setenv("LDNQ_DATA", str(tmp_path))
    assert usual_root(datasets.get("svhn-extra")) == usual_root(datasets.get("svhn")) == tmp_path / "svhn"


def test_a_single_image_may_lack_its_last_axis_as_matlab_writes_it(tmp_path):
    whole = contents([10])
    savemat(tmp_path / "train_32x32.mat", {"X": whole["X"][..., 0], "y": whole["y"]})
    images = load(tmp_path)
    assert images.labels.tolist() == [0]
    np.testing.assert_array_equal(np.array(images.picture(0)), whole["X"][..., 0])


def test_labels_may_be_a_row_of_floats(tmp_path):
    savemat(tmp_path / "train_32x32.mat", contents([10, 2]) | {"y": np.array([[10.0, 2.0]])})
    assert load(tmp_path).labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("name", "split", "missing"),
    [("svhn", "train", "train"), ("svhn", "test", "test"), ("svhn-extra", "train", "extra")],
)
def test_a_missing_file_is_named(root, name, split, missing):
    (root / f"{missing}_32x32.mat").unlink()
    with pytest.raises(DataError, match=rf"no SVHN in .*: expected {missing}_32x32\.mat; --download fetches it"):
        load(root, split, name)


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    return data[:900] + bytes([data[900] ^ 1]) + data[901:]


@pytest.mark.parametrize(
    "spoil",
    [_cut, _flip, lambda _: b"", lambda _: b"no matrix", lambda _: bytes(999)],
    ids=["cut", "a-bit-flipped", "empty", "junk", "zeros"],
)
@pytest.mark.filterwarnings("default")
def test_a_damaged_file_is_named_in_one_line(root, spoil):
    path = root / "train_32x32.mat"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"cannot read .*train_32x32\.mat \(.+\): remove it and --download") as error:
        load(root)
    assert "\n" not in str(error.value)


PIXELS, DIGITS = "expected images X, uint8 .32, 32, 3, n., in ", "expected 4 labels y from 1 to 10, "


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"X": None}, rf"{PIXELS}.*train_32x32\.mat, found none"),
        ({"y": None}, rf"{DIGITS}.*train_32x32\.mat, found none"),
        ({"X": np.zeros((32, 32, 3, 4))}, rf"{PIXELS}.*found float64 \(32, 32, 3, 4\)"),
        ({"X": np.zeros((4, 32, 32, 3), np.uint8)}, rf"{PIXELS}.*found uint8 \(4, 32, 32, 3\)"),
        ({"X": np.zeros((32, 32, 3, 0), np.uint8)}, PIXELS),
        ({"X": "text"}, PIXELS),
        ({"y": np.array([[1, 2, 3]])}, rf"{DIGITS}.*found 3, such as \[1, 2, 3\]"),
        ({"y": np.array([[1, 2, 3, 11]])}, rf"{DIGITS}.*found 4, such as \[1, 2, 3, 11\]"),
        ({"y": np.array([[1, 2, 3, 0.5]])}, DIGITS),
        ({"y": "1234"}, DIGITS),
    ],
    ids=[
        "no-images", "no-labels", "floats", "images-first", "no-image", "text", "a-label-less", "label-11", "half",
        "labels-in-words",
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_named_with_what_it_holds(tmp_path, change, expected):
    held = {name: value for name, value in (contents(LABELS["train"]) | change).items() if value is not None}
    savemat(tmp_path / "train_32x32.mat", held)
    with pytest.raises(DataError, match=expected) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture
def published(root, monkeypatch):
    """The three files of `root`, served as if they were the published ones; the digest of "extra" is another's."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        port = re.search(r"port (\d+)", server.stdout.readline())[1]
        entries = {}
        for part in LABELS:
            name = f"{part}_32x32.mat"
            digest = hashlib.md5((root / name).read_bytes(), usedforsecurity=False).hexdigest()
            entries[part] = [f"http://127.0.0.1:{port}/{name}", name, digest if part != "extra" else "0" * 32]
        monkeypatch.setattr(SVHN, "split_list", entries)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield
        server.terminate()


def test_a_download_fetches_what_is_missing_and_leaves_what_is_there(published, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    savemat(target / "train_32x32.mat", contents([5]))
    assert load(target, "train", download=True).labels.tolist() == [5]
    assert load(target, "test", download=True).labels.tolist() == [7, 0]
    assert sorted(path.name for path in target.iterdir()) == ["test_32x32.mat", "train_32x32.mat"]


def test_a_download_that_arrives_damaged_is_not_kept(published, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(DataError, match=r"cannot download .*/extra_32x32\.mat \(.+\): put it into .*target"):
        load(target, "extra", download=True)
    assert not list(target.iterdir())


@pytest.mark.parametrize("name", ["svhn", "svhn-extra"])
def test_house_digits_are_never_mirrored(name):
    assert not datasets.get(name).flip
