"""Counts are those by hand and those that torchvision publishes; what an operation is follows from the bits."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrize

from ldnq.complexity import LayerComplexity, complexity, in_words, totals
from ldnq.errors import NetworkError
from ldnq.models import models


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False), nn.Flatten(), nn.Linear(54, 10),
    )  # fmt: skip


def test_a_network_is_counted_as_by_hand():
    layers = complexity(small(), 16)
    assert [(layer.name, layer.kind, layer.macs, layer.parameters, layer.elementwise) for layer in layers] == [
        ("0", "conv", 3 * 9 * 4 * 256, 112, 4 * 256),
        ("1", "BatchNorm2d", 0, 8, 2 * 4 * 256),
        ("2", "ReLU", 0, 0, 4 * 256),
        ("3", "MaxPool2d", 0, 0, 4 * 256),
        ("4", "conv", 2 * 9 * 6 * 9, 108, 0),
        ("6", "linear", 540, 550, 10),
    ]
    assert in_words(layers) == "778 parameters, 29.16 k multiply-accumulates an image"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "vit_b_32"])
def test_counts_are_those_that_torchvision_publishes(name):
    found = totals(complexity(models.get(name).build(), 224))
    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    assert found["parameters"] == published["num_params"]
    assert found["macs"] / 1e9 == pytest.approx(published["_ops"], abs=6e-4)


BITS = [
    ((32, 32), "float"), ((1, 32), "float"), ((32, 8), "float"), ((1, 1), "binary"), ((1, 2), "k-bit"),
    ((1.58, 1), "k-bit"), ((2.32, 8), "k-bit"),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "operation"), BITS, ids=str)
def test_what_an_operation_is_depends_on_weights_and_inputs(bits, operation):
    assert LayerComplexity("conv", "conv", 1, 1, *bits).operation == operation


def test_totals_are_split_by_the_bits_of_layers():
    layers = complexity(small(), 16, {"0": 1, "4": 2, "6": 2}, {"0": 1, "4": 8})
    found = totals(layers)
    assert (found["binary_macs"], found["kbit_macs"], found["float_macs"]) == (27_648, 972, 540)
    assert found["macs"] == 27_648 + 972 + 540


class Iterated(nn.Module):
    """Its layers are in a list, which is never called, and one is shared; it multiplies by itself, too."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 3, 1)
        self.layers = nn.ModuleList([conv, conv])
        self.unused = nn.Linear(2, 2)
        parametrize.register_parametrization(self.unused, "weight", nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.flatten(1) @ x.flatten(1).T


def test_what_is_shared_unused_or_outside_of_layers_is_counted_once_where_it_belongs():
    layers = complexity(Iterated(), 8)
    assert [(layer.name, layer.macs, layer.parameters) for layer in layers] == [
        ("", 3 * 64, 0), ("layers.0", 2 * 9 * 64, 12), ("unused", 0, 6),
    ]  # fmt: skip


def test_a_network_is_left_as_it_was():
    module = small().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    complexity(module, 16)
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_image_that_does_not_fit_is_refused():
    with pytest.raises(NetworkError, match=r"the network fails on a batch of shape \(1, 3, 32, 32\)"):
        complexity(small(), 32)
