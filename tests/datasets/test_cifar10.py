"""CIFAR-10 from image folders, and what is said of batches that are not the published ones."""

import pickle

import numpy as np
import pytest
from PIL import Image

from ldnq.datasets import datasets
from ldnq.errors import DataError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def load(root, split="train", download=False):
    return datasets.get("cifar10").load(root, split, download)


def test_image_folders_of_ten_classes_are_read(write_images):
    root = write_images({f"{split}/{name}": n for split, n in (("train", 3), ("test", 2)) for name in CLASSES})
    train, test = load(root), load(root, "test")
    assert (len(train), len(test)) == (30, 20)
    assert train.class_names == test.class_names == tuple(CLASSES)
    assert train.labels.tolist() == [label for label in range(10) for _ in range(3)]
    np.testing.assert_array_equal(
        np.array(test.picture(5)), np.array(Image.open(root / "test" / "bird" / "1.png").convert("RGB"))
    )


def test_a_missing_test_folder_is_named(write_images):
    root = write_images({f"train/{name}": 1 for name in CLASSES})
    with pytest.raises(DataError, match=r"expected .*val or .*test with one folder per class"):
        load(root, "test")


def _nothing(root):
    pass


def _batches(root):
    """Batches in the published form, but of two images each."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    batch = {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0, 1]}
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [name.encode() for name in CLASSES]}))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("fill", [_nothing, _batches], ids=["an-empty-folder", "altered-batches"])
def test_a_folder_without_the_published_batches_is_refused_in_one_line(tmp_path, fill, split):
    fill(tmp_path)
    with pytest.raises(DataError, match=r"no CIFAR-10 in .*: expected cifar-10-batches-py/ or train/.*--download") as e:
        load(tmp_path, split)
    assert "\n" not in str(e.value)


class _Opened:
    """Leaves a file behind when its pickle is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_pickles_are_not_opened_before_their_checksum_is_right(tmp_path, name):
    _batches(tmp_path)
    file, trace = tmp_path / "cifar-10-batches-py" / name, tmp_path / "opened"
    file.write_bytes(pickle.dumps(_Opened(trace)))
    with pytest.raises(DataError, match="no CIFAR-10 in"):
        load(tmp_path)
    assert not trace.exists()
    # It would have shown.
    pickle.loads(file.read_bytes()).close()
    assert trace.exists()


def test_a_download_without_a_network_is_refused_in_one_line(tmp_path, offline):
    with pytest.raises(DataError, match="no CIFAR-10 in") as error:
        load(tmp_path, download=True)
    assert "\n" not in str(error.value)
