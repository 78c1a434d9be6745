"""Image folders in the layouts that people have."""

import pytest

from ldnq.datasets import datasets
from ldnq.datasets.folder import load_folder, load_splits
from ldnq.errors import DataError


@pytest.mark.parametrize("test", ["val", "test", "validation"])
def test_train_and_test_folders_are_the_two_splits(write_images, test):
    root = write_images({"train/cat": 3, "train/dog": 2, f"{test}/cat": 1, f"{test}/dog": 4})
    train, held_out = (load_folder(root, split) for split in ("train", "test"))
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert held_out.labels.tolist() == [0, 1, 1, 1, 1]
    assert train.class_names == held_out.class_names == ("cat", "dog")


def test_val_is_taken_before_test(write_images):
    root = write_images({"train/cat": 1, "val/cat": 2, "test/cat": 3})
    assert len(load_folder(root, "test")) == 2


def test_without_a_test_folder_there_is_no_test_split(write_images):
    root = write_images({"train/cat": 1, "train/dog": 1})
    assert load_folder(root, "test") is None


def test_without_a_train_folder_class_folders_are_training_images(write_images):
    root = write_images({"cat": 2, "dog": 1})
    images = load_folder(root, "train")
    assert images.class_names == ("cat", "dog")
    assert len(images) == 3
    assert load_folder(root, "test") is None


@pytest.mark.parametrize("folder", [".", "train"], ids=["the-root-itself", "a-train-folder"])
def test_a_flat_folder_is_unlabelled(write_images, folder):
    images = load_folder(write_images({folder: 4}), "train")
    assert len(images) == 4
    assert not images.labelled


def test_hidden_folders_leave_a_flat_folder_flat(write_images):
    images = load_folder(write_images({".": 2, ".thumbnails": 1}), "train")
    assert len(images) == 2
    assert not images.labelled


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_folder_is_named(write_images, split):
    counts = {"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/dog": 1} | {f"{split}/dog": 0}
    root = write_images(counts)
    with pytest.raises(DataError, match=rf"{split}/dog holds no images"):
        load_folder(root, "train" if split == "train" else "test")


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(DataError, match="expected images, class folders or uncompressed tar shards"):
        load_folder(tmp_path, "train")


@pytest.mark.parametrize(
    ("counts", "split", "expected"),
    [
        ({"cat": 1}, "train", r"images/train with one folder per class, found none"),
        ({"train/cat": 1}, "test", r"images/val or .*images/test with one folder per class, found neither"),
    ],
    ids=["no-train", "no-test"],
)
def test_a_dataset_with_two_splits_needs_both(write_images, counts, split, expected):
    with pytest.raises(DataError, match=expected):
        load_splits(write_images(counts), split)


def test_a_dataset_with_two_splits_gives_both(write_images):
    root = write_images({"train/a": 2, "val/a": 1})
    assert len(load_splits(root, "train")) == 2
    assert len(load_splits(root, "test")) == 1


@pytest.mark.parametrize("name", ["folder", "imagenet", "imagenette"])
def test_families_of_folders_are_read_by_name(write_images, name):
    root = write_images({"train/n01440764": 2, "val/n01440764": 1})
    family = datasets.get(name)
    assert [len(family.load(root, split, False)) for split in ("train", "test")] == [2, 1]
