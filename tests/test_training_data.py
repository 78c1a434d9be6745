import numpy as np
import pytest
import torch

from ldnq.config import DataConfig, NetworkConfig
from ldnq.data import load_data
from ldnq.datasets import datasets
from ldnq.errors import UsageError
from ldnq.network import shipped_folders
from ldnq.preprocessing import Preprocessing
from ldnq.training_data import load_teacher, split, training_images
from ldnq.training_recipe import TrainingRecipe

RESNET = NetworkConfig("resnet20")


@pytest.fixture
def digits():
    return load_data(DataConfig(), datasets.get("digits"))


def test_a_share_is_drawn_by_its_seed():
    stay, held = split(1000, 0.2, seed=1)
    assert (len(stay), len(held)) == (800, 200)
    assert sorted([*stay, *held]) == list(range(1000))
    assert np.array_equal(split(1000, 0.2, seed=1)[1], held)
    assert not np.array_equal(split(1000, 0.2, seed=2)[1], held)
    assert len(np.intersect1d(held, split(1000, 0.2, seed=2)[1])) < 100
    assert [len(part) for part in split(1000, 0.0, seed=1)] == [1000, 0]
    assert [len(part) for part in split(1000, 1e-6, seed=1)] == [999, 1]


def test_images_held_out_are_not_trained_on(digits):
    everything = training_images(digits, Preprocessing(32), TrainingRecipe(), 0)
    assert everything.held_out is None
    some = training_images(digits, Preprocessing(32), TrainingRecipe(hold_out=0.1), 0)
    stay, held = split(len(everything.images), 0.1, seed=0)
    assert torch.equal(some.images, everything.images[stay])
    assert torch.equal(some.labels, everything.labels[stay])
    assert torch.equal(some.held_out[0], everything.images[held])
    assert torch.equal(some.held_out[1], everything.labels[held])


def test_large_images_are_kept_larger_than_those_that_judge(digits):
    found = training_images(digits, Preprocessing(70), TrainingRecipe(hold_out=0.9), 0)
    assert (found.images.shape[-1], found.held_out[0].shape[-1]) == (80, 70)


def test_a_teacher_sees_the_same_images(digits):
    network, options = RESNET, DataConfig(dataset="digits")
    weights = shipped_folders()[0] / "resnet20-digits.safetensors"
    own = Preprocessing(32, digits.family.mean, digits.family.std)
    assert not load_teacher(network, weights, None, options, digits, own).training
    with pytest.raises(UsageError, match=r"expected a teacher of std \(1, 1, 1\), as the network, found .*: see --std"):
        load_teacher(network, weights, None, options, digits, Preprocessing(32, own.mean, (1, 1, 1)))
    with pytest.raises(UsageError, match="expected a teacher of image-size 40, as the network, found 32"):
        load_teacher(network, weights, None, options, digits, Preprocessing(40, own.mean, own.std))
