"""From a dataset's name and the user's options to its two splits."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldnq.config import DataConfig
from ldnq.data import find_root, load_data, resolve_dataset
from ldnq.datasets import datasets
from ldnq.errors import DataError, UsageError

FOLDER = datasets.get("folder")


def write_images(root: Path, *folders: str) -> Path:
    rng = np.random.default_rng(0)
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / folder / "0.png")
    return root


def one_line(error) -> None:
    assert "\n" not in str(error.value)


def test_both_splits_of_a_folder_are_loaded(tmp_path):
    root = write_images(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog")
    data = load_data(DataConfig("folder", str(root)), FOLDER)
    assert (len(data.train), len(data.test)) == (2, 2)
    assert data.num_classes == 2
    assert data.class_names == ("cat", "dog")
    assert data.family is FOLDER


def test_a_flat_folder_has_neither_classes_nor_test_images(tmp_path):
    data = load_data(DataConfig("folder", str(write_images(tmp_path, "."))), FOLDER)
    assert data.test is None
    assert data.num_classes is None
    assert data.class_names == ()


def test_unlabelled_training_images_with_labelled_test_images_have_the_classes_of_those(tmp_path):
    root = write_images(tmp_path, "train", "val/cat", "val/dog", "val/emu")
    data = load_data(DataConfig("folder", str(root)), FOLDER)
    assert not data.train.labelled
    assert data.num_classes == 3


def test_a_known_dataset_has_its_own_number_of_classes(tmp_path):
    root = write_images(tmp_path, *(f"{split}/{label}" for split in ("train", "test") for label in range(10)))
    assert load_data(DataConfig("cifar10", str(root)), datasets.get("cifar10")).num_classes == 10


@pytest.mark.parametrize("name", ["cifar10", "imagenette", "imagenet"])
def test_a_known_dataset_with_another_number_of_classes_is_refused(tmp_path, name):
    root = write_images(tmp_path, "train/n01440764", "train/n01440765", "val/n01440764", "val/n01440765")
    with pytest.raises(DataError, match=rf"expected the \d+ classes of {name} in .*, found 2"):
        load_data(DataConfig(name, str(root)), datasets.get(name))


def test_digits_need_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = load_data(DataConfig("digits"), datasets.get("digits"))
    assert (len(data.train), len(data.test), data.num_classes) == (1347, 450, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("test_classes", "found"),
    [(("val/cat",), "2 for training and 1 for testing"), (("val/cat", "val/emu"), "the same classes")],
    ids=["fewer", "another-name"],
)
def test_splits_of_different_classes_are_refused(tmp_path, test_classes, found):
    root = write_images(tmp_path, "train/cat", "train/dog", *test_classes)
    with pytest.raises(DataError, match=found) as error:
        load_data(DataConfig("folder", str(root)), FOLDER)
    one_line(error)


@pytest.mark.parametrize("name", ["imagenette", "cifar10"])
def test_more_class_folders_than_the_dataset_has_are_refused(tmp_path, name):
    folders = [f"{split}/class{number:02}" for split in ("train", "val") for number in range(11)]
    with pytest.raises(DataError, match="found 11"):
        load_data(DataConfig(name, str(write_images(tmp_path, *folders))), datasets.get(name))


@pytest.mark.parametrize(
    "name", [name for name in datasets if not datasets.get(name).embedded], ids=lambda name: f"dataset-{name}"
)
def test_a_missing_folder_is_named(tmp_path, name):
    absent = tmp_path / "absent"
    with pytest.raises(DataError, match=f"no folder {re.escape(str(absent))} for dataset {name}") as error:
        load_data(DataConfig(name, str(absent)), datasets.get(name))
    one_line(error)


@pytest.mark.parametrize(
    "name", [name for name in datasets if not datasets.get(name).embedded], ids=lambda name: f"dataset-{name}"
)
def test_an_empty_folder_is_an_error_in_one_line(tmp_path, name):
    with pytest.raises(DataError, match=re.escape(str(tmp_path))) as error:
        load_data(DataConfig(name, str(tmp_path)), datasets.get(name))
    one_line(error)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="no folder"):
        load_data(DataConfig("folder", str(tmp_path / "file")), FOLDER)


def test_a_folder_dataset_needs_to_be_told_where():
    with pytest.raises(UsageError, match="expected --data-root for dataset folder"):
        find_root(DataConfig("folder"), FOLDER)


def test_the_folder_is_looked_for_where_the_user_says_then_the_environment_then_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "shared/imagenette", "data/imagenette"):
        (tmp_path / folder).mkdir(parents=True)
    family = datasets.get("imagenette")
    monkeypatch.delenv("LDNQ_DATA", raising=False)
    assert find_root(DataConfig(), family) == Path("data/imagenette")
    (tmp_path / "calib_data/imagenet").mkdir(parents=True)
    assert find_root(DataConfig(), datasets.get("imagenet")) == Path("calib_data/imagenet")
    monkeypatch.setenv("LDNQ_DATA", str(tmp_path / "shared"))
    assert find_root(DataConfig(), family) == tmp_path / "shared" / "imagenette"
    assert find_root(DataConfig(data_root=str(tmp_path / "mine")), family) == tmp_path / "mine"


def test_a_missing_usual_folder_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDNQ_DATA", raising=False)
    with pytest.raises(DataError, match=r"no folder data/cifar10 .*: give --data-root or set LDNQ_DATA"):
        find_root(DataConfig(), datasets.get("cifar10"))


def test_a_download_makes_its_folder(tmp_path):
    root = tmp_path / "new" / "svhn"
    assert find_root(DataConfig(data_root=str(root), download=True), datasets.get("svhn")) == root
    assert root.is_dir()


def test_the_network_has_a_usual_dataset_that_the_user_can_replace():
    assert resolve_dataset(None, "cifar10", "resnet20").name == "cifar10"
    assert resolve_dataset("digits", "cifar10", "resnet20").name == "digits"


def test_a_network_without_a_usual_dataset_needs_one():
    with pytest.raises(UsageError, match="expected --dataset for mine:net: it has no usual one"):
        resolve_dataset(None, "", "mine:net")


def test_a_misspelt_dataset_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown dataset 'cifar-10': did you mean cifar10\?"):
        resolve_dataset("cifar-10", "", "mine:net")
