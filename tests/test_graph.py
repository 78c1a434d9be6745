import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldnq import graph
from ldnq.errors import NetworkError
from ldnq.graph import Layer, find_layers

CONVOLUTIONS = {
    "plain": dict(kernel_size=3, padding=1),
    "strided": dict(kernel_size=3, stride=2, padding=1),
    "even stride and kernel": dict(kernel_size=4, stride=(2, 1), padding=(0, 2)),
    "dilated": dict(kernel_size=3, dilation=2, padding=2),
    "grouped": dict(kernel_size=3, groups=2, padding=1),
    "depthwise": dict(kernel_size=3, groups=4, padding=1),
    "pointwise with bias": dict(kernel_size=1, bias=True),
    "same": dict(kernel_size=(4, 3), padding="same"),
    "valid": dict(kernel_size=3, padding="valid"),
    "reflect": dict(kernel_size=3, padding=2, padding_mode="reflect"),
    "circular": dict(kernel_size=3, padding=(1, 2), padding_mode="circular"),
    "replicate same": dict(kernel_size=(3, 4), padding="same", padding_mode="replicate"),
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
# F.conv2d itself warns that it copies the input to pad even kernels.
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_weight_matrix_times_columns_is_the_convolution(options):
    conv = nn.Conv2d(4, 8, **({"bias": False} | options)).double()
    x = torch.randn(3, 4, 9, 11, dtype=torch.float64)
    layer = Layer("conv", "conv", tuple(conv.weight.shape), conv.groups, 1)
    product = layer.to_matrix(conv.weight) @ graph.unfold(conv, x)
    expected = conv(x)
    torch.testing.assert_close(product, graph.as_matrix(conv, graph.without_bias(conv, expected)))


def test_weight_matrix_times_columns_is_the_linear_layer():
    linear = nn.Linear(5, 3).double()
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    layer = Layer("linear", "linear", (3, 5), 1, 1)
    product = layer.to_matrix(linear.weight) @ graph.unfold(linear, x)
    torch.testing.assert_close(product, graph.as_matrix(linear, graph.without_bias(linear, linear(x))))


def test_matrix_and_weight_are_inverse():
    weight = torch.randn(6, 2, 3, 3)
    layer = Layer("conv", "conv", (6, 2, 3, 3), 3, 1)
    assert layer.to_matrix(weight).shape == (3, 2, 18)
    assert torch.equal(layer.to_weight(layer.to_matrix(weight)), weight)


class Backwards(nn.Module):
    """Defines its layers in another order than it runs them, runs one twice and one never."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.never = nn.Conv2d(4, 4, 1)
        self.first = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.first(x))
        x = self.up(self.twice(self.twice(x)))
        return self.last(x.mean((2, 3)))


def test_layers_come_in_the_order_of_execution_and_the_rest_with_a_reason():
    layers, skipped = find_layers(Backwards().eval(), torch.randn(2, 3, 8, 8))
    assert [(layer.name, layer.kind, layer.calls) for layer in layers] == [
        ("first", "conv", 1),
        ("twice", "conv", 2),
        ("last", "linear", 1),
    ]
    assert {layer.name: layer.reason for layer in skipped} == {
        "up": "ConvTranspose2d is not a Conv2d or Linear layer",
        "never": "it is never called as a module in a forward pass",
    }


class Standardized(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean())


def test_a_layer_with_its_own_arithmetic_or_a_shared_weight_stays_float():
    network = nn.Sequential(Standardized(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    network[2].weight = network[1].weight
    torch.nn.utils.parametrizations.weight_norm(network[3])
    layers, skipped = find_layers(network, torch.randn(1, 3, 2, 2))
    assert [layer.name for layer in layers] == ["1"]
    reasons = {layer.name: layer.reason for layer in skipped}
    assert reasons["0"] == "Standardized computes its output in a way of its own"
    assert reasons["2"] == "it shares its weight with 1"
    assert "3" in reasons or "3.parametrizations.weight" in reasons


def test_a_pass_to_a_layer_sees_each_of_its_calls_and_no_later_layer():
    network = Backwards().eval()
    x = torch.randn(2, 3, 8, 8)
    layers, _ = find_layers(network, x)
    ran = []
    network.last.register_forward_hook(lambda *_: ran.append("last"))
    calls = graph.run_to(network, layers[1].name, x, layers[1].calls)
    hidden = network.norm(network.first(x))
    torch.testing.assert_close(calls[0][0], hidden)
    torch.testing.assert_close(calls[1][0], network.twice(hidden))
    assert ran == []


def test_a_network_that_cannot_take_the_input_is_named_in_one_line():
    with pytest.raises(NetworkError, match=r"fails on a batch of shape \(1, 1, 8, 8\)") as error:
        find_layers(Backwards().eval(), torch.randn(1, 1, 8, 8))
    assert "\n" not in str(error.value)


def test_a_lack_of_memory_is_no_fault_of_the_network():
    class Greedy(nn.Module):
        def forward(self, x):
            return torch.empty(1 << 60)

    with pytest.raises(RuntimeError, match="allocate"):
        graph.forward(Greedy(), torch.ones(1))


def test_outputs_of_modules_are_recorded_while_inside():
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    x, y = torch.randn(5, 3), torch.randn(2, 3)
    with graph.recorded(network, ["0", "1.0"]) as outputs:
        network(x)
        assert set(outputs) == {"0", "1.0"}
        assert torch.equal(outputs["1.0"], network[0](x).relu())
        network(y)
        assert torch.equal(outputs["0"], network[0](y))
    network(x)
    assert len(outputs["0"]) == 2
