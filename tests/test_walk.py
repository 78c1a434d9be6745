"""A walk from layer to layer sees what a pass of the whole network sees, also when weights ahead of it change."""

import copy
import weakref

import pytest
import torch
from torch import nn

from ldnq.graph import find_layers, run_to
from ldnq.models import models
from ldnq.store import Store
from ldnq.walk import Walk
from ldnq.wiring import Wiring

NETWORKS = {
    "resnet20": (lambda: models.get("resnet20").build(), 32),
    "with projections": (lambda: models.get("resnet18").build(num_classes=10), 32),
    "depthwise": (lambda: models.get("mobilenet_v2").build(num_classes=10), 32),
    "without batch norm": (lambda: models.get("squeezenet1_0").build(num_classes=10), 32),
}


@pytest.mark.parametrize("limit", [float("inf"), 200_000, 0], ids=["in memory", "some in files", "in files"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_inputs_and_outputs_are_those_of_a_whole_pass(name, limit):
    build, size = NETWORKS[name]
    student, x = build().eval(), torch.randn(2, 3, size, size)
    teacher = copy.deepcopy(student)
    store = Store(limit)
    walks = Walk(Wiring(student), x, store), Walk(Wiring(teacher), x, store)
    for layer in find_layers(student, x)[0]:
        ((inputs, _),) = run_to(student, layer.name, x)
        ((_, outputs),) = run_to(teacher, layer.name, x)
        torch.testing.assert_close(walks[0].inputs(layer), [inputs])
        torch.testing.assert_close(walks[1].outputs(layer), [outputs])
        for walk in walks:
            walk.rest()
        assert store.bytes_in_memory <= limit
        # What lies ahead of the inputs, the layer itself included, may change.
        student.get_submodule(layer.name).weight.mul_(1.1)


def test_every_module_runs_about_once():
    network, x = models.get("resnet20").build().eval(), torch.randn(2, 3, 32, 32)
    calls = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_: calls.append(1))
    layers = find_layers(network, x)[0]
    calls.clear()
    walk = Walk(Wiring(network), x)
    for layer in layers:
        walk.inputs(layer)
    assert len(calls) == 19


class InPlace(nn.Module):
    """Overwrites what it has computed before, as networks do to save memory."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x)
        y = self.second(x)
        x.add_(1)
        x.mul_(2)
        return self.third(torch.cat([x, y.relu_()], 1))


@pytest.mark.parametrize("rest", [False, True], ids=["", "resting"])
@pytest.mark.parametrize("limit", [float("inf"), 60, 0], ids=["in memory", "the smaller in memory", "in files"])
@pytest.mark.parametrize("ahead", [False, True], ids=["", "looking ahead"])
@torch.no_grad()
def test_operations_in_place_are_done_once(limit, ahead, rest):
    network, x = InPlace().eval(), torch.randn(3, 4)
    walk = Walk(Wiring(network), x.clone(), Store(limit))
    for layer in find_layers(network, x)[0]:
        ((expected, _),) = run_to(network, layer.name, x)
        for _ in range(2):
            torch.testing.assert_close(walk.inputs(layer)[0], expected)
            if ahead:
                torch.testing.assert_close(walk.value("third"), network(x))
            if rest:
                walk.rest()


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = self.layer(x)
        return self.layer(x) if x.sum() < 1e9 else x


@torch.no_grad()
def test_the_result_is_that_of_the_weights_as_they_are_now():
    for network, x in ((InPlace(), torch.randn(3, 4)), (Untraceable(), torch.randn(3, 4))):
        walk = Walk(Wiring(network), x.clone())
        for layer in find_layers(network, x.clone())[0]:
            walk.inputs(layer)
            for _ in range(2):
                network.get_submodule(layer.name).weight.mul_(1.5)
                torch.testing.assert_close(walk.result(), network(x.clone()))


def test_values_that_nobody_needs_any_more_are_not_held():
    network, alive = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))), []

    def count(_, inputs, output):
        sizes.append(sum(1 for reference in alive if reference() is not None))
        alive.append(weakref.ref(output))

    sizes = []
    for module in network:
        module.register_forward_hook(count)
    with torch.no_grad():
        Walk(Wiring(network), torch.randn(2, 4)).result()
    assert max(sizes) <= 1


@torch.no_grad()
def test_a_network_that_cannot_be_traced_and_a_layer_called_twice_are_passed_as_a_whole():
    network, x = Untraceable().eval(), torch.randn(3, 4)
    (layer,) = find_layers(network, x)[0]
    walk = Walk(Wiring(network), x)
    assert [tensor.tolist() for tensor in walk.inputs(layer)] == [x.tolist(), network.layer(x).tolist()]
    assert torch.equal(walk.outputs(layer)[1], network(x))
