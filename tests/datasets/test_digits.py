"""scikit-learn's digits, enlarged and split once and for all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as embedded
from torchvision.transforms.v2.functional import resize

from ldnq.datasets import datasets


@pytest.fixture(scope="module")
def splits():
    family = datasets.get("digits")
    return [family.load(Path("unused"), split, False) for split in ("train", "test")]


def enlarged() -> torch.Tensor:
    """All of scikit-learn's digits at 32x32 by torchvision, as floats of 0 to 255."""
    return resize(torch.from_numpy(embedded().images * (255 / 16)), [32, 32], antialias=True)


def originals(images) -> np.ndarray:
    """The number of the scikit-learn digit that each image was made from."""
    pictures = torch.from_numpy(images.pixels[..., 0]).double()
    return torch.cdist(pictures.flatten(1), enlarged().flatten(1)).argmin(1).numpy()


def test_three_quarters_are_for_training(splits):
    assert [len(images) for images in splits] == [1347, 450]


def test_no_digit_is_in_both_splits_and_every_label_is_its_own(splits):
    train, test = (originals(images) for images in splits)
    assert len(set(train)) == 1347
    assert len(set(test)) == 450
    assert not set(train) & set(test)
    for images, numbers in zip(splits, (train, test)):
        np.testing.assert_array_equal(images.labels, embedded().target[numbers])


def test_every_class_has_its_share_of_the_test_images(splits):
    of_all = np.bincount(embedded().target) / 4
    assert np.abs(np.bincount(splits[1].labels) - of_all).max() <= 1


def test_the_pictures_are_the_digits_enlarged_in_grey(splits):
    train = splits[0]
    numbers = originals(train)
    for index in (0, 1, 700, 1346):
        picture = np.array(train.picture(index))
        assert picture.shape == (32, 32, 3)
        assert (picture == picture[..., :1]).all()
        reference = enlarged()[numbers[index]].numpy()
        assert np.abs(picture[..., 0] - reference).max() <= 1.5


def test_the_stated_mean_and_deviation_are_those_of_the_images(splits):
    family = datasets.get("digits")
    values = splits[0].pixels / 255
    assert values.mean() == pytest.approx(family.mean[0], abs=0.005)
    assert values.std() == pytest.approx(family.std[0], abs=0.005)


def test_digits_need_no_folder_and_are_never_mirrored():
    family = datasets.get("digits")
    assert family.embedded
    assert not family.flip


def test_the_split_is_always_the_same(splits):
    again = datasets.get("digits").load(Path("elsewhere"), "train", False)
    assert again.fingerprint() == splits[0].fingerprint()
    assert splits[0].fingerprint() != splits[1].fingerprint()
