import copy

import pytest
import torch
from torch import nn

from ldnq import moments, products
from ldnq.errors import NetworkError
from ldnq.graph import find_layers, run_to
from ldnq.problem import least_squares


def _pair(*modules):
    teacher = nn.Sequential(*modules).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[0].weight += 0.1 * torch.randn_like(student[0].weight)
    return student, teacher


def _gather(student, teacher, layer, batches, shift=0.0):
    calls = [
        (x, y + shift)
        for batch in batches
        for (x, _), (_, y) in zip(*(run_to(module, layer.name, batch, layer.calls) for module in (student, teacher)))
    ]
    modules = (module.get_submodule(layer.name) for module in (student, teacher))
    return moments.gather_moments(layer, *modules, calls)


@pytest.mark.parametrize("groups", [1, 2, 4], ids=["dense", "grouped", "depthwise"])
@pytest.mark.parametrize("max_entries", [1, 1 << 26], ids=["a sample at a time", "whole batches"])
def test_moments_are_those_of_all_positions_at_once(groups, max_entries, monkeypatch):
    monkeypatch.setattr(products, "MAX_ENTRIES", max_entries)
    student, teacher = _pair(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups))
    x = torch.randn(10, 3, 7, 7)
    layer = find_layers(student, x[:1])[0][1]
    found = _gather(student, teacher, layer, x.split(4))

    # float64, patch by patch, in plain Python.
    with torch.no_grad():
        inputs = nn.functional.pad(student[:2](x), (1, 1, 1, 1)).double()
        targets = (teacher(x) - teacher[2].bias[:, None, None]).double()
    channels, rows = 4 // groups, 8 // groups
    for group in range(groups):
        part = inputs[:, group * channels : (group + 1) * channels]
        patches = [
            (part[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].flatten(), targets[n, :, i, j])
            for n in range(10)
            for i in range(targets.shape[2])
            for j in range(targets.shape[3])
        ]
        columns = torch.stack([patch for patch, _ in patches])
        outputs = torch.stack([y for _, y in patches])
        own = outputs[:, group * rows : (group + 1) * rows]
        torch.testing.assert_close(found.gram[group], columns.T @ columns / len(patches), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.cross[group], own.T @ columns / len(patches), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.mean[group, :, 0], columns.mean(0), rtol=1e-5, atol=1e-7)
    assert found.energy == pytest.approx(float(outputs.square().sum(1).mean()), rel=1e-5)


def test_relative_error_is_that_of_the_outputs():
    student, teacher = _pair(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(40, 6)
    layer = find_layers(student, x[:1])[0][1]
    found = _gather(student, teacher, layer, x.split(16))
    weights = torch.randn(3, 5)
    target = (teacher(x) - teacher[2].bias).detach()
    output = student[:2](x).detach() @ weights.T
    expected = (target - output).square().sum() / target.square().sum()
    assert found.relative_error(weights.double().unsqueeze(0)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("layer", [nn.Linear(2000, 10), nn.Conv2d(2000, 10, 1)], ids=["linear", "1x1"])
def test_inputs_that_hardly_differ_from_one_image_to_the_next_keep_what_differs(layer):
    # As random features, pooled over noise, do. Centred in single precision their Gram matrix is not even semidefinite.
    x = torch.rand(1, 2000) + 0.01 * torch.randn(40, 2000)
    network = nn.Sequential(layer)
    inputs = x if isinstance(layer, nn.Linear) else x[:, :, None, None]
    with torch.no_grad():
        found = _gather(network, network, find_layers(network, inputs[:1])[0][0], [inputs]).centred()
    differences = (x.double() - x.double().mean(0)).T
    torch.testing.assert_close(found.gram[0], differences @ differences.T / 40, rtol=1e-6, atol=1e-12)
    least_squares(found.gram, found.cross, layer.weight.detach().double().view(1, 10, -1), 0.01)


def test_a_layer_that_runs_twice_is_measured_in_both_calls():
    layer = nn.Linear(4, 4, bias=False)
    network = nn.Sequential(layer, nn.ReLU(), layer)
    x = torch.randn(30, 4)
    found = _gather(network, network, find_layers(network, x[:1])[0][0], [x])
    hidden = layer(x).relu()
    torch.testing.assert_close(found.gram[0], ((x.T @ x + hidden.T @ hidden) / 60).double(), rtol=1e-5, atol=1e-7)


def test_a_bias_is_the_weight_of_a_constant_input():
    linear = nn.Linear(3, 2)
    x = torch.randn(50, 3)
    found = _gather(linear, linear, find_layers(linear, x[:1])[0][0], [x])
    extended = torch.cat([x, torch.ones(50, 1)], 1).double()
    torch.testing.assert_close(found.gram_with_ones[0], extended.T @ extended / 50, rtol=1e-5, atol=1e-7)
    bias = linear.bias.detach().double().view(1, -1, 1)
    expected = linear(x).detach().double().T @ extended / 50
    torch.testing.assert_close(found.cross_with_ones(bias)[0], expected, rtol=1e-5, atol=1e-7)


def test_centred_moments_are_covariances():
    student, teacher = _pair(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(40, 6)
    layer = find_layers(student, x[:1])[0][1]
    shift = torch.randn(40, 3)
    centred = _gather(student, teacher, layer, [x], shift).centred()
    inputs = student[:2](x).detach().double()
    targets = (teacher(x) - teacher[2].bias + shift).detach().double()
    inputs, targets = inputs - inputs.mean(0), targets - targets.mean(0)
    torch.testing.assert_close(centred.gram[0], inputs.T @ inputs / 40, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(centred.cross[0], targets.T @ inputs / 40, rtol=1e-5, atol=1e-6)
    assert centred.energy == pytest.approx(float(targets.square().sum(1).mean()), rel=1e-5)


def test_an_input_that_hardly_changes_has_no_part_in_centred_moments():
    linear = nn.Linear(3, 2)
    x = torch.randn(50, 3)
    x[:, 1] = 5 + 1e-4 * x[:, 1]
    centred = _gather(linear, linear, find_layers(linear, x[:1])[0][0], [x]).centred()
    assert centred.dead_inputs == 1
    for nothing in (centred.gram[0, 1], centred.gram[0, :, 1], centred.cross[0, :, 1]):
        assert not nothing.any()
    assert centred.gram[0, ::2, ::2].all()


def _variants():
    """Convolutions of every kind that PyTorch has, in pairs of options that meet in code."""
    for padding_mode in ("zeros", "reflect", "replicate", "circular"):
        for kernel, stride, padding, dilation in [
            (3, 1, 1, 1), (1, 1, 0, 1), (1, 2, 0, 1), (3, 2, 1, 1), (3, 1, 2, 2), (2, 3, 1, 1), ((5, 3), 1, (2, 1), 1),
            ((1, 3), (1, 2), (0, 2), (1, 2)), ((3, 2), (2, 1), (2, 0), (2, 3)), (3, 1, "valid", 1), (3, 1, "same", 2),
            ((2, 4), 1, "same", (3, 1)),
        ]:  # fmt: skip
            for groups in (1, 2, 4):
                yield dict(
                    kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups,
                    padding_mode=padding_mode,
                )  # fmt: skip


def _columns(layer, x):
    """What the weights are multiplied with, as PyTorch's own convolution in float64 finds it: (groups, d, positions),
    by kernels of a single one."""
    d = layer.weight[0].numel()
    ones = nn.Conv2d(
        layer.in_channels, layer.groups * d, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        layer.groups, False, layer.padding_mode, dtype=torch.float64,
    )  # fmt: skip
    ones.weight.copy_(torch.eye(d).view(d, *layer.weight.shape[1:]).repeat(layer.groups, 1, 1, 1))
    return ones(x.double()).transpose(0, 1).reshape(layer.groups, d, -1)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("options", list(_variants()), ids=lambda options: " ".join(map(str, options.values())))
@torch.no_grad()
def test_moments_of_every_convolution_are_those_of_float64(options):
    teacher, student = nn.Conv2d(4, 8, **options), nn.Conv2d(4, 8, **options)
    x = torch.randn(6, 4, 9, 8) + 0.5
    layer = find_layers(student, x[:1])[0][0]
    found = moments.gather_moments(layer, student, teacher, [(part, teacher(part)) for part in x.split(4)])
    X = _columns(teacher, x)
    Y = teacher.double()(x.double()) - teacher.bias.view(-1, 1, 1)
    Y = Y.transpose(0, 1).reshape(layer.groups, -1, X.shape[2])
    gram, positions = X @ X.mT / X.shape[2], X.shape[2]
    assert found.positions == positions
    # Of the largest that an entry could be, by Cauchy and Schwarz.
    root = gram.diagonal(dim1=1, dim2=2).sqrt().unsqueeze(2)
    size = Y.square().mean(2, keepdim=True).sqrt()
    assert ((found.gram - gram).abs() <= 2e-6 * root @ root.mT).all()
    assert ((found.cross - Y @ X.mT / positions).abs() <= 2e-6 * size @ root.mT).all()
    assert ((found.mean - X.mean(2, keepdim=True)).abs() <= 1e-6 * root).all()
    assert found.energy == pytest.approx(float(Y.square().sum((0, 1)).mean()), rel=1e-6)


def test_the_relative_error_of_nothing_wanted_is_none_or_infinite():
    layer = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(layer.weight)
    network, x = nn.Sequential(layer), torch.randn(8, 3)
    found = _gather(network, network, find_layers(network, x[:1])[0][0], [x])
    assert found.relative_error(torch.zeros(1, 2, 3, dtype=torch.float64)) == 0
    assert found.relative_error(torch.ones(1, 2, 3, dtype=torch.float64)) == float("inf")


def test_inputs_whose_squares_are_infinite_name_the_layer():
    network, x = nn.Sequential(nn.Linear(3, 2)), torch.full((8, 3), 1e30)
    layer = find_layers(network, x[:1])[0][0]
    x[0, 0] = torch.inf
    with pytest.raises(NetworkError, match="found NaN, infinity or more at layer 0: check these images"):
        _gather(network, network, layer, [x])
