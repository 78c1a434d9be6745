import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import ldnq
from ldnq.errors import DataError, NetworkError


class Twice(nn.Module):
    """Depthwise, dilated, grouped and repeated convolutions, and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")
        self.depthwise = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6)
        self.bn = nn.BatchNorm2d(6)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        x = self.depthwise(self.depthwise(x).relu())
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("training", [True, False], ids=["with cascade", "without"])
def test_any_network_is_quantized_from_a_loader(training):
    network = Twice()
    before = copy.deepcopy(network.state_dict())
    loader = DataLoader(TensorDataset(torch.randn(40, 3, 8, 8), torch.zeros(40)), 16)
    model = ldnq.quantize(network, loader, kbits=5, preset="paper", scale="channel", training=training)
    assert list(model.weights) == ["stem.weight", "depthwise.weight", "head.weight"]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.training
    for name, weight in model.weights.items():
        assert torch.equal(model.module.get_parameter(name), weight.dequantize())
    batch_norm_moved = not torch.equal(model.module.bn.running_mean, before["bn.running_mean"])
    assert batch_norm_moved == training


def test_a_saved_network_gives_the_same_logits_bit_for_bit(tmp_path):
    network = Twice()
    x = torch.randn(40, 3, 8, 8)
    model = ldnq.quantize(network, [x], kbits=3)
    ldnq.save(model, tmp_path / "model.h5")
    loaded = ldnq.load(tmp_path / "model.h5", Twice())
    assert torch.equal(loaded.module(x), model.module(x))


def test_equal_seeds_give_equal_networks():
    network, x = Twice(), torch.randn(40, 3, 8, 8)
    one, two = (ldnq.quantize(network, [x], kbits=5, batch_size=8, seed=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.module.state_dict().values(), two.module.state_dict().values()))


def test_more_levels_come_closer_to_the_network():
    network, x = Twice().eval(), torch.randn(60, 3, 8, 8)
    errors = []
    for kbits in (3, 5, 7):
        model = ldnq.quantize(network, [x], kbits=kbits, scale="channel", training=False)
        errors.append(float((model.module(x) - network(x)).detach().square().mean()))
    assert errors == sorted(errors, reverse=True)


def test_no_inputs_are_refused():
    with pytest.raises(DataError, match="at least one batch"):
        ldnq.quantize(Twice(), [], kbits=3)


def test_one_image_is_enough_to_end():
    model = ldnq.quantize(Twice(), [torch.randn(1, 3, 8, 8)], kbits=3)
    assert len(model.weights) == 3


def test_training_works_where_the_caller_has_switched_gradients_off():
    with torch.no_grad():
        model = ldnq.quantize(Twice(), [torch.randn(8, 3, 8, 8)], kbits=3)
    assert len(model.weights) == 3


def test_layers_for_volumes_stay_float():
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(16, 3))
    model = ldnq.quantize(network, [torch.randn(8, 1, 4, 4, 4)], kbits=3)
    assert list(model.weights) == ["2.weight"]
    assert torch.equal(model.module[0].weight.sign(), network[0].weight.sign())


def test_pruned_weights_are_refused_with_what_to_do():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    prune.random_unstructured(network[0], "weight", 0.5)
    with pytest.raises(NetworkError, match="remove pruning and weight normalization first"):
        ldnq.quantize(network, [torch.randn(8, 4)], kbits=3)


def test_a_network_that_overflows_is_refused_in_one_line():
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with torch.no_grad():
        network[0].weight[:] = torch.inf
    with pytest.raises(NetworkError, match="infinite values") as error:
        ldnq.quantize(network, [torch.randn(8, 4).abs()], kbits=3)
    assert "\n" not in str(error.value)
