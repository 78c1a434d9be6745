import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldnq.models import models
from ldnq.walk import Walk
from ldnq.wiring import Wiring


class Block(nn.Module):
    """A residual block whose sum is written as `join` does it."""

    def __init__(self, join):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.plain = nn.Conv2d(3, 3, 1)
        self.join = join

    def forward(self, x):
        x = F.relu(x)
        return self.plain(F.relu(self.join(self.norm(self.conv(x)), x)))


def add_in_place(a, b):
    a += b
    return a


JOINS = {
    "a + b": lambda a, b: a + b,
    "b + a": lambda a, b: b + a,
    "a += b": add_in_place,
    "torch.add": torch.add,
    "a.add(b)": lambda a, b: a.add(b),
    "a.add_(b)": lambda a, b: a.add_(b),
}


@pytest.mark.parametrize("join", JOINS.values(), ids=JOINS)
def test_the_other_branch_of_a_sum_is_found_and_computed(join):
    network = Block(join).eval()
    wiring = Wiring(network)
    assert wiring.batch_norm_after("conv") == "norm"
    assert wiring.batch_norm_after("plain") is None
    assert wiring.addend("plain") is None
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(Walk(wiring, x).value(wiring.addend("conv")), F.relu(x))


@pytest.mark.parametrize(
    ("name", "arguments", "pairs", "sums"),
    [
        ("resnet20", {}, 19, 9),
        ("resnet20", {"option": "B"}, 21, 11),
        # A projection and the convolution beside it are each other's other branch.
        ("resnet18", {"num_classes": 10}, 20, 11),
        ("resnet50", {"num_classes": 10}, 53, 20),
        ("mobilenet_v2", {"num_classes": 10}, 52, 10),
        ("vgg11", {"num_classes": 10}, 0, 0),
    ],
)
def test_joints_of_known_networks_are_found(name, arguments, pairs, sums):
    module = models.get(name).build(**arguments).eval()
    wiring = Wiring(module)
    layers = [n for n, child in module.named_modules() if isinstance(child, (nn.Conv2d, nn.Linear))]
    assert sum(wiring.batch_norm_after(layer) is not None for layer in layers) == pairs
    assert sum(wiring.addend(layer) is not None for layer in layers) == sums


def test_blocks_are_the_smallest_modules_with_a_sum():
    assert Wiring(models.get("resnet20").build().eval()).blocks() == [
        f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)
    ]
    blocks = Wiring(models.get("mobilenet_v2").build(num_classes=10).eval()).blocks()
    assert blocks[:3] == ["features.3", "features.5", "features.6"]
    assert Wiring(models.get("vgg11").build(num_classes=10).eval()).blocks() == []


class Named(nn.Module):
    """Has a module that is called "add", and adds nothing."""

    def __init__(self):
        super().__init__()
        self.add = nn.Identity()

    def forward(self, x):
        return self.add(x)


def test_a_module_called_add_is_no_sum():
    assert Wiring(Named().eval()).blocks() == []


class Shared(nn.Module):
    """One convolution that runs twice, and another whose output is also used beside its batch norm."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 1)
        self.forked = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.norm(self.twice(self.twice(x)))
        y = self.forked(x)
        return self.other(y) * y


def test_a_batch_norm_that_serves_more_than_one_layer_belongs_to_none():
    wiring = Wiring(Shared().eval())
    assert wiring.batch_norm_after("twice") is None
    assert wiring.batch_norm_after("forked") is None


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.mean() > 0 else x


def test_a_network_that_cannot_be_traced_is_said_aloud_and_has_no_joints(caplog):
    with caplog.at_level("INFO", logger="ldnq"):
        wiring = Wiring(Branching().eval())
    assert "every layer is taken by itself" in caplog.text
    assert wiring.batch_norm_after("conv") is None
    assert wiring.addend("conv") is None
