"""`timm/NAME`: timm's networks with timm's preprocessing, where timm is installed."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import ldnq
from ldnq.config import DataConfig, NetworkConfig
from ldnq.datasets import datasets
from ldnq.errors import CheckpointError, UsageError
from ldnq.network import decide_preprocessing, find_family, load_network
from ldnq.preprocessing import Preprocessing

timm = pytest.importorskip("timm")
DIGITS, IMAGENET = datasets.get("digits"), datasets.get("imagenet")


@pytest.fixture
def weights(workdir):
    """A file of random weights of timm's smallest ResNet, for the digits."""
    torch.manual_seed(3)
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), "weights.pt")
    return "weights.pt"


def test_a_network_is_timms_own(weights):
    found = load_network(NetworkConfig("timm/test_resnet", checkpoint=weights), DataConfig(), DIGITS, 10)
    module = timm.create_model("test_resnet", num_classes=10).eval()
    module.load_state_dict(torch.load(weights))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.module(images), module(images))
    assert (found.model, found.model_args) == ("timm/test_resnet", {"num_classes": 10})


@pytest.mark.parametrize("name", ["test_resnet", "resnet10t", "resnet10t.c3_in1k"])
def test_images_are_prepared_as_timm_does(name):
    family = find_family(f"timm/{name}")
    ours = decide_preprocessing(family, DataConfig(), IMAGENET)
    module = timm.create_model(name)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(module))
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (210, 330, 3), dtype=np.uint8))
    found = ours.normalize(ours.to_uint8(image)[None])[0]
    assert found.shape == theirs(image).shape
    # torchvision rounds half a pixel of the crop elsewhere in at most a step of one value.
    assert torch.allclose(found, theirs(image), atol=1e-5)


def test_options_win_over_timms_preprocessing():
    chosen = decide_preprocessing(find_family("timm/test_resnet"), DataConfig(image_size=32), DIGITS)
    assert chosen == Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None)


def test_a_checkpoint_is_loaded_by_timms_name(weights, workdir):
    network = load_network(NetworkConfig("timm/test_resnet", checkpoint=weights), DataConfig(), DIGITS, 10)
    images = torch.rand(8, 3, 32, 32)
    model = ldnq.quantize(network.module, [images], kbits=5, preset="paper", solver="nearest", training=False)
    named = replace(model, model=network.model, model_args=network.model_args)
    ldnq.save(named, "model.h5")
    with torch.no_grad():
        assert torch.equal(ldnq.load("model.h5").module(images), model.module(images))


def test_a_float_network_is_evaluated(weights, workdir, monkeypatch):
    from click.testing import CliRunner

    from ldnq.cli import main

    words = ["evaluate", "--model", "timm/test_resnet", "--checkpoint", weights, "--dataset", "digits"]
    result = CliRunner().invoke(main, [*words, "--image-size", "32", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["samples"] == 450


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="unknown network 'test_resnt' of timm: did you mean test_resnet"):
        find_family("timm/test_resnt")


def test_without_a_network_connection_one_line_says_so(workdir, offline):
    with pytest.raises(CheckpointError) as error:
        load_network(NetworkConfig("timm/test_resnet"), DataConfig(), IMAGENET, 1000)
    assert str(error.value).startswith("cannot download the weights of timm for test_resnet: give --checkpoint")
    assert "\n" not in str(error.value)


def test_without_timm_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"expected the package timm, found none: pip install 'ldnq\[timm\]'"):
        find_family("timm/test_resnet")


@pytest.mark.parametrize("argument", [{"pretrained": True}, {"checkpoint_path": "/etc/passwd"}, {"pretrained_cfg": {}}])
def test_a_file_of_a_stranger_cannot_make_timm_fetch_weights(workdir, argument):
    module = timm.create_model("test_resnet", num_classes=10)
    model = replace(
        ldnq.quantize(module, [torch.rand(4, 3, 32, 32)], preset="fast", solver="nearest"),
        model="timm/test_resnet", model_args=argument,
    )  # fmt: skip
    ldnq.save(model, "model.h5")
    with pytest.raises(UsageError, match=f"got {next(iter(argument))}: give weights by --checkpoint"):
        ldnq.load("model.h5")
