"""The ResNets for 32x32 images have the sizes and the names of the published ones."""

import pytest
import torch
import torch.nn.functional as F

from ldnq.errors import UsageError
from ldnq.models import models
from ldnq.models.cifar_resnet import CifarResNet, PadShortcut


def build(name: str, **arguments) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.get(name).build(**arguments).eval()


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


PADDED = {"resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962}
PROJECTED = {
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet44": 661_338,
    "resnet56": 855_770,
    "resnet110": 1_730_714,
}


@pytest.mark.parametrize(("name", "published"), PADDED.items(), ids=PADDED)
def test_a_network_with_padded_shortcuts_has_the_published_number_of_parameters(name, published):
    assert count(build(name)) == published


@pytest.mark.parametrize(("name", "published"), PROJECTED.items(), ids=PROJECTED)
def test_a_network_with_projected_shortcuts_has_the_published_number_of_parameters(name, published):
    assert count(build(name, option="B")) == published


@pytest.mark.parametrize(
    ("option", "thousands"), [("A", 1074), ("B", 1085)], ids=["padded-shortcuts", "projected-shortcuts"]
)
def test_a_network_of_twice_the_width_has_four_times_the_parameters(option, thousands):
    assert round(count(build("resnet20", width=32, option=option)) / 1e3) == thousands


def test_the_weights_have_the_names_of_public_checkpoints():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = ["conv1.weight", *(f"bn1.{name}" for name in norm)]
    for layer in (1, 2, 3):
        for block in range(3):
            for half in (1, 2):
                at = f"layer{layer}.{block}."
                expected += [f"{at}conv{half}.weight", *(f"{at}bn{half}.{name}" for name in norm)]
    expected += ["linear.weight", "linear.bias"]
    assert list(build("resnet20").state_dict()) == expected


def test_projected_shortcuts_have_the_names_of_public_checkpoints():
    added = set(build("resnet20", option="B").state_dict()) - set(build("resnet20").state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert added == {
        f"layer{layer}.0.shortcut.{name}"
        for layer in (2, 3)
        for name in ("0.weight", *(f"1.{entry}" for entry in norm))
    }


@pytest.mark.parametrize("option", ["A", "B"])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_network_gives_one_number_for_each_class(option, classes):
    with torch.no_grad():
        assert build("resnet20", num_classes=classes, option=option)(torch.rand(2, 3, 32, 32)).shape == (2, classes)


def plain_forward(weights: dict, x: torch.Tensor) -> torch.Tensor:
    """ResNet-20 with padded shortcuts, written out from the paper on the tensors of a checkpoint."""

    def norm(name, x):
        return F.batch_norm(x, *(weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    x = norm("bn1", F.conv2d(x, weights["conv1.weight"], padding=1)).relu()
    for layer in (1, 2, 3):
        for block in range(3):
            at, stride = f"layer{layer}.{block}.", 2 if layer > 1 and block == 0 else 1
            out = norm(f"{at}bn1", F.conv2d(x, weights[f"{at}conv1.weight"], stride=stride, padding=1)).relu()
            out = norm(f"{at}bn2", F.conv2d(out, weights[f"{at}conv2.weight"], padding=1))
            if stride == 2:
                zeros = torch.zeros(len(x), x.shape[1] // 2, *out.shape[2:])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
            x = (out + x).relu()
    return F.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


def test_a_network_computes_what_the_paper_says():
    module = build("resnet20")
    for buffer in module.modules():
        if isinstance(buffer, torch.nn.BatchNorm2d):
            buffer.running_mean.normal_()
            buffer.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(module(images), plain_forward(module.state_dict(), images), rtol=1e-4, atol=1e-4)


def test_a_padded_shortcut_takes_every_second_pixel_between_zero_channels():
    x = torch.arange(16.0).view(1, 1, 4, 4) + 1
    out = PadShortcut(2)(x)
    assert out.shape == (1, 3, 2, 2)
    assert out[0, 1].tolist() == [[1, 3], [9, 11]]
    assert not out[0, 0].any()
    assert not out[0, 2].any()


def test_another_shortcut_is_refused():
    with pytest.raises(UsageError, match="expected shortcut option A or B, got 'C'"):
        CifarResNet(3, option="C")


@pytest.mark.parametrize("name", PADDED)
def test_a_family_states_its_input_size_and_usual_dataset(name):
    family = models.get(name)
    assert (family.name, family.image_size, family.default_dataset) == (name, 32, "cifar10")
    assert family.published is None
