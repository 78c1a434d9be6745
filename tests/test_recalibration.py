import copy

import pytest
import torch
from torch import nn

from ldnq.recalibration import batch_statistics, recalibrate


def _network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    ).eval()


def test_batch_norms_take_the_statistics_of_their_inputs():
    network, x = _network(), torch.randn(60, 3, 8, 8) + 1
    recalibrate(network, x.split(20))
    with torch.no_grad():
        first = network[0](x)
        # The second sees what the first passes on while it works with the statistics of each batch.
        second = torch.cat([network[4](_normalized(network[1], part).relu()) for part in first.split(20)])
    for norm, inputs in ((network[1], first), (network[5], second)):
        torch.testing.assert_close(norm.running_mean, inputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, inputs.var((0, 2, 3)), rtol=1e-2, atol=1e-5)
    assert not any(module.training for module in network.modules())
    assert network[1].momentum == pytest.approx(0.1)


def _normalized(norm, x):
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt()


def test_only_batch_norms_are_in_training_mode():
    network = _network()
    with batch_statistics(network) as norms:
        assert [module for module in network.modules() if module.training] == norms == [network[1], network[5]]


def test_a_single_sample_has_no_statistics():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    x = torch.randn(9, 3)
    recalibrate(network, x.split(8))
    torch.testing.assert_close(network[1].running_mean, network[0](x[:8]).mean(0).detach())


def test_a_network_without_batch_norm_stays_as_it_is():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    before = copy.deepcopy(network.state_dict())
    recalibrate(network, [torch.randn(4, 3)])
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
