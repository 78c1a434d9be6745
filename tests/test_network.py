"""A network by name: its weights are found, or the message says where to put them."""

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from ldnq import checkpoints, runtime
from ldnq.config import DataConfig, NetworkConfig, RuntimeConfig
from ldnq.datasets import datasets
from ldnq.errors import CheckpointError, NetworkError, UsageError
from ldnq.evaluation import evaluate
from ldnq.models import models
from ldnq.models.torchvision import TorchvisionWeights
from ldnq.network import build, decide_preprocessing, find_family, load_network
from ldnq.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

CIFAR10, DIGITS, IMAGENETTE = (datasets.get(name) for name in ("cifar10", "digits", "imagenette"))
FACTORY = """
from torch import nn

def make(num_classes=7, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

def wrong():
    return "a string"

constant = 3
"""


@pytest.fixture
def elsewhere(tmp_path, offline, monkeypatch) -> Path:
    """A fresh current folder, no network, and nothing downloaded before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def factory(elsewhere, monkeypatch) -> str:
    """The name of a module in the current folder, other for each test."""
    name = f"net_{abs(hash(elsewhere))}"
    (elsewhere / f"{name}.py").write_text(FACTORY)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return name


def resnet20(classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.get("resnet20").build(num_classes=classes)


def load(config: NetworkConfig, dataset=DIGITS, classes: int = 10, **data):
    return load_network(config, DataConfig(**data), dataset, classes)


def test_weights_are_loaded_from_the_named_file(elsewhere):
    torch.save(resnet20().state_dict(), elsewhere / "mine.th")
    network = load(NetworkConfig("resnet20", checkpoint="mine.th"))
    assert torch.equal(network.module.conv1.weight, resnet20().conv1.weight)
    assert (network.model, network.source) == ("resnet20", "mine.th")
    assert not network.module.training


@pytest.mark.parametrize("extension", ["safetensors", "pt", "pth", "th"])
def test_weights_are_found_by_the_name_of_model_and_dataset(elsewhere, extension):
    path = elsewhere / "store" / f"resnet20-cifar10.{extension}"
    path.parent.mkdir()
    if extension == "safetensors":
        checkpoints.write(path, resnet20().state_dict(), {})
    else:
        torch.save({"state_dict": resnet20().state_dict()}, path)
    network = load(NetworkConfig("resnet20", pretrained_dir="store"), CIFAR10)
    assert torch.equal(network.module.conv1.weight, resnet20().conv1.weight)
    assert network.source == f"store/resnet20-cifar10.{extension}"


def test_the_weights_that_ship_are_found_from_any_folder(elsewhere):
    network = load(NetworkConfig("resnet20"))
    assert network.source.endswith("resnet20-digits.safetensors")
    assert network.preprocessing == Preprocessing(32, DIGITS.mean, DIGITS.std)


def test_the_users_own_folder_comes_before_the_weights_that_ship(elsewhere):
    checkpoints.write(elsewhere / "pretrained" / "resnet20-digits.safetensors", resnet20().state_dict(), {})
    assert torch.equal(load(NetworkConfig("resnet20")).module.conv1.weight, resnet20().conv1.weight)


def test_without_weights_the_message_says_which_file_to_put_where(elsewhere):
    with pytest.raises(CheckpointError) as error:
        load(NetworkConfig("resnet44", pretrained_dir="store"), CIFAR10)
    assert str(error.value) == (
        "no weights for resnet44 on cifar10: put resnet44-cifar10.safetensors (or .pt, .pth, .th) into store/, "
        "give --checkpoint, or train them with 'ldnq train'"
    )


@pytest.mark.parametrize(
    ("model", "file"),
    [("resnet18", "resnet18-f37072fd.pth"), ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth")],
    ids=["resnet18", "squeezenet1_1"],
)
def test_without_a_network_connection_the_message_names_the_file_to_fetch(elsewhere, model, file):
    with pytest.raises(CheckpointError) as error:
        load(NetworkConfig(model), datasets.get("imagenet"), 1000)
    message = str(error.value)
    assert f"cannot download https://download.pytorch.org/models/{file}: put that file into pretrained/" in message
    assert "\n" not in message


def test_weights_for_a_dataset_that_nobody_published_are_not_downloaded(elsewhere):
    with pytest.raises(CheckpointError, match=r"put resnet18-cifar10\.safetensors .* into pretrained/"):
        load(NetworkConfig("resnet18"), CIFAR10)


def test_a_misspelt_model_is_answered_with_near_names():
    with pytest.raises(UsageError, match=r"unknown model 'resnet21': did you mean resnet.*\?"):
        find_family("resnet21")


def test_an_unknown_model_without_near_names_is_answered_with_the_list():
    with pytest.raises(UsageError, match="unknown model 'xyzzy': see 'ldnq list models'"):
        find_family("xyzzy")


def test_weights_of_another_number_of_classes_are_refused(elsewhere):
    torch.save(resnet20(100).state_dict(), elsewhere / "mine.th")
    with pytest.raises(CheckpointError, match=r"mine\.th belongs to .*: of another shape: linear\.weight \(100, 64\)"):
        load(NetworkConfig("resnet20", checkpoint="mine.th"))


def test_a_fine_tuned_head_is_asked_for_by_its_number_of_classes(elsewhere):
    torch.save(resnet20(100).state_dict(), elsewhere / "mine.th")
    network = load(NetworkConfig("resnet20", checkpoint="mine.th", num_classes=100))
    assert network.module.linear.out_features == 100
    assert network.model_args == {"num_classes": 100}


def test_the_card_of_the_weights_builds_the_network(elsewhere):
    arguments = {"width": 8, "option": "B", "num_classes": 4}
    card = {"model_args": arguments, "num_classes": 4}
    checkpoints.write(elsewhere / "mine.safetensors", build("resnet20", arguments).state_dict(), card)
    network = load(NetworkConfig("resnet20", checkpoint="mine.safetensors"))
    assert network.model_args == arguments
    assert network.module.linear.weight.shape == (4, 32)


def test_arguments_of_the_network_reach_it(elsewhere):
    torch.save(build("resnet20", {"width": 8}).state_dict(), elsewhere / "mine.pt")
    network = load(NetworkConfig("resnet20", {"width": 8}, checkpoint="mine.pt"))
    assert network.module.conv1.out_channels == 8
    assert network.model_args == {"width": 8, "num_classes": 10}


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("resnet20", {"depth": 3}),
        ("resnet18", {"depth": 3}),
        ("resnet18", {"num_classes": None}),
        ("resnet20", {"width": "wide"}),
        ("resnet20", {"width": -1}),
        ("mobilenet_v2", {"dropout": 2}),
    ],
    ids=["unknown", "unknown-to-torchvision", "none", "word", "negative", "out-of-range"],
)
def test_arguments_that_the_network_does_not_take_are_refused(model, arguments):
    with pytest.raises(NetworkError, match=f"cannot build {model} with") as error:
        build(model, arguments)
    assert "\n" not in str(error.value)


def test_a_network_of_the_users_is_imported_from_the_current_folder(factory):
    network = load(NetworkConfig(f"{factory}:make", {"width": 5}), image_size=24)
    assert network.module[0].out_channels == 5
    assert network.module[3].out_features == 7
    assert network.model_args == {"width": 5}
    assert network.source == f"{factory}:make (its own weights)"
    assert not network.module.training


def test_a_network_of_the_users_takes_weights_and_a_number_of_classes(factory, elsewhere):
    given = build(f"{factory}:make", {"num_classes": 3}).state_dict()
    torch.save(given, elsewhere / "mine.pt")
    network = load(NetworkConfig(f"{factory}:make", num_classes=3, checkpoint="mine.pt"))
    assert torch.equal(network.module[3].weight, given["3.weight"])


def test_a_network_of_the_users_has_the_image_size_of_the_dataset_or_the_users(factory):
    folder = datasets.get("folder")
    assert load(NetworkConfig(f"{factory}:make"), CIFAR10).preprocessing.image_size == 32
    assert load(NetworkConfig(f"{factory}:make"), folder, 7, image_size=48).preprocessing.image_size == 48
    with pytest.raises(UsageError, match=r"expected --image-size for .* on folder"):
        load(NetworkConfig(f"{factory}:make"), folder, 7)


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [("wrong", "to return a torch.nn.Module, got str"), ("constant", "cannot build")],
    ids=["returns-a-string", "not-callable"],
)
def test_a_factory_that_makes_no_network_is_refused(factory, attribute, expected):
    with pytest.raises(NetworkError, match=expected):
        build(f"{factory}:{attribute}", {})


@pytest.mark.parametrize(
    "model", ["absent_package:net", "os:net", ":net", "os:", ".relative:net"],
    ids=["no-module", "no-attribute", "empty-module", "empty-attribute", "relative"],
)  # fmt: skip
def test_a_factory_that_cannot_be_imported_is_named(elsewhere, model):
    with pytest.raises(UsageError, match=f"cannot import .* for --model {model}") as error:
        find_family(model)
    assert "\n" not in str(error.value)


def decide(model="resnet18", dataset=IMAGENETTE, card=None, **data) -> Preprocessing:
    return decide_preprocessing(models.get(model), DataConfig(**data), dataset, card or {})


CARD = {"preprocessing": {"image_size": 48, "resize": 64, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}


def test_preprocessing_is_the_networks_size_with_the_datasets_mean():
    assert decide() == Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD, 256)
    assert decide("resnet20", CIFAR10) == Preprocessing(32, CIFAR10.mean, CIFAR10.std)
    assert decide("resnet18", CIFAR10) == Preprocessing(224, CIFAR10.mean, CIFAR10.std, 256)


def test_the_card_of_the_weights_comes_before_network_and_dataset():
    assert decide(card=CARD) == Preprocessing(48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 64)


@pytest.mark.parametrize("card", [None, CARD], ids=["no-card", "card"])
def test_the_users_options_come_before_everything(card):
    chosen = decide(card=card, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), image_size=96)
    assert (chosen.mean, chosen.std, chosen.image_size) == ((0, 0, 0), (1, 1, 1), 96)


def test_another_image_size_keeps_the_proportion_of_the_crop():
    assert decide(image_size=112).resize == 128
    assert decide(card=CARD, image_size=96).resize == 128
    assert decide("resnet20", CIFAR10, image_size=64).resize in (None, 64)


def test_images_of_the_size_that_is_asked_for_are_not_cropped():
    assert decide("resnet18", CIFAR10, image_size=32).resize is None


def test_the_card_in_a_file_decides_the_preprocessing(elsewhere):
    checkpoints.write(elsewhere / "mine.safetensors", resnet20().state_dict(), CARD)
    network = load(NetworkConfig("resnet20", checkpoint="mine.safetensors"))
    assert network.preprocessing == Preprocessing(48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 64)
    overridden = load(NetworkConfig("resnet20", checkpoint="mine.safetensors"), mean=(0.5, 0.5, 0.5))
    assert overridden.preprocessing == Preprocessing(48, (0.5, 0.5, 0.5), (0.4, 0.5, 0.6), 64)


def publish(name: str, module: nn.Module, folder: Path) -> None:
    """Put the weights of `module` where torchvision's published file of `name` would be put by hand."""
    url = TorchvisionWeights(name).entry.url
    folder.mkdir()
    torch.save(module.state_dict(), folder / url.rsplit("/", 1)[1])


def test_an_imagenet_network_on_imagenette_keeps_its_outputs_and_ten_of_them_compete(elsewhere):
    imagenet = torchvision.models.resnet18(weights=None)
    nn.init.zeros_(imagenet.fc.weight)
    nn.init.zeros_(imagenet.fc.bias)
    with torch.no_grad():
        imagenet.fc.bias[1] = 9.0  # goldfish, which Imagenette does not have
        imagenet.fc.bias[497] = 5.0  # church, the fifth class of Imagenette
    publish("resnet18", imagenet, elsewhere / "pretrained")
    network = load(NetworkConfig("resnet18"), IMAGENETTE, 10)
    assert network.module.fc.out_features == 1000
    assert network.model_args["num_classes"] == 1000
    assert network.source.endswith("pretrained/resnet18-f37072fd.pth")
    assert network.preprocessing == Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD, 256)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    accuracy = evaluate(
        network.module, [(images, torch.tensor([4, 4, 4, 0]))], network.preprocessing,
        runtime.start(RuntimeConfig(device="cpu")), 10, IMAGENETTE.class_subset,
    )  # fmt: skip
    assert accuracy.top1 == 75


@pytest.mark.parametrize("option", ["--pretrained-dir", "--checkpoint"])
def test_a_published_file_is_known_by_its_name_wherever_it_lies(elsewhere, option):
    publish("squeezenet1_1", build("squeezenet1_1", {"num_classes": 1000}), elsewhere / "mine")
    (file,) = (elsewhere / "mine").iterdir()
    config = NetworkConfig(
        "squeezenet1_1", **{option[2:].replace("-", "_"): str(file if "check" in option else "mine")}
    )
    network = load(config, IMAGENETTE, 10)
    assert network.model_args["num_classes"] == 1000
    assert network.preprocessing.resize == 256


def test_weights_trained_on_imagenette_itself_come_before_those_of_imagenet(elsewhere):
    store = elsewhere / "pretrained"
    checkpoints.write(store / "squeezenet1_1-imagenette.safetensors", build("squeezenet1_1", {"num_classes": 10})
                      .state_dict(), {"num_classes": 10})  # fmt: skip
    checkpoints.write(store / "squeezenet1_1-imagenet.safetensors", {}, {})
    network = load(NetworkConfig("squeezenet1_1"), IMAGENETTE, 10)
    assert network.module.classifier[1].out_channels == 10


def test_googlenet_takes_its_published_weights(elsewhere):
    """torchvision's file holds both side branches, and its network transforms its input."""
    published = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True)
    publish("googlenet", published, elsewhere / "pretrained")
    network = load(NetworkConfig("googlenet"), datasets.get("imagenet"), 1000)
    assert torch.equal(network.module.fc.weight, published.fc.weight)
    assert network.module.transform_input
