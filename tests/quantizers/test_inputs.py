"""Layers that round their inputs: in any network, and made again from what a checkpoint says."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ldnq.errors import LdnqError, NetworkError
from ldnq.quantizers import kinds
from ldnq.quantizers.dorefa import UnitInputs
from ldnq.quantizers.inputs import find_inputs, rebuilt, with_inputs
from ldnq.quantizers.xnor import SignInputs


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()


def test_only_the_layers_named_round_what_they_are_given():
    plain, x = network(), torch.randn(2, 3, 8, 8)
    rounded = with_inputs(network(), {"3": UnitInputs(plain[3], 2)})
    inside = plain[2](plain[1](plain[0](x))).clamp(0, 1)
    np.testing.assert_allclose(rounded(x).detach(), plain[3]((inside * 3).round() / 3).detach(), rtol=1e-5, atol=1e-6)
    assert list(rounded.state_dict()) == list(plain.state_dict())


def test_a_network_made_again_computes_the_same():
    first = network()
    with_inputs(first, {"0": SignInputs(first[0], norm=True, scale=True), "3": UnitInputs(first[3], 4)})
    first.train()(torch.randn(16, 3, 8, 8))
    specs = {name: entry.spec() for name, entry in find_inputs(first).items()}
    second = rebuilt(network(), specs)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 8, 8)
    np.testing.assert_array_equal(first.eval()(x).detach(), second.eval()(x).detach())
    np.testing.assert_array_equal(copy.deepcopy(first)(x).detach(), second(x).detach())


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ({"9": {"kind": "unit", "bits": 4}}, "no layer 9"),
        ({"1": {"kind": "unit", "bits": 4}}, "expected a Conv2d or Linear layer 1"),
        ({"1": {"kind": "sign", "norm": True}}, "expected a Conv2d or Linear layer 1"),
        ({"0": {"kind": "units", "bits": 4}}, "unknown kind of rounding 'units'"),
        ({"0": {"bits": 4}}, "expected a known rounding"),
        ({"0": {"kind": "unit", "bits": 4, "more": 1}}, "expected a known rounding"),
        ({"0": {"kind": "unit", "bits": 0}}, "1 to 32 bits"),
        ({"0": {"kind": "step", "bits": "4"}}, "1 to 32 bits"),
    ],
)
def test_what_cannot_be_made_again_is_said_in_a_line(specs, said):
    with pytest.raises(LdnqError, match=said):
        rebuilt(network(), specs)


def test_a_layer_of_another_kind_is_refused():
    module = nn.Sequential(nn.Conv1d(3, 4, 3))
    with pytest.raises(NetworkError, match="expected a Conv2d or Linear layer 0"):
        with_inputs(module, {"0": UnitInputs(nn.Linear(1, 1), 4)})


def test_every_kind_is_known_by_its_own_name():
    assert {name: kinds.get(name).kind for name in kinds} == {name: name for name in kinds}
