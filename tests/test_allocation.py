"""Levels under a budget: the integer program against every possibility, and what a user gets of it."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import ldnq
from ldnq.allocation import allocate
from ldnq.errors import UsageError

BITS = [math.log2(levels) for levels in (3, 5, 7)]


def _problem(seed, layers=6):
    """Layers of very different sizes, errors over orders of magnitude, now and then worse with more levels."""
    rng = np.random.default_rng(seed)
    sizes = 10 ** rng.uniform(1, 5, layers)
    errors = 10 ** rng.uniform(-6, -1, (layers, 1)) * np.array([1, 0.3, 0.1]) * rng.uniform(0.5, 2, (layers, 3))
    return errors, sizes[:, None] * np.array(BITS) / sizes.sum()


def _all_choices(errors, bits, budget):
    """The least error of every choice that fits."""
    layers = range(len(errors))
    return min(
        sum(errors[i][c] for i, c in zip(layers, choice))
        for choice in product(*(range(len(row)) for row in errors))
        if sum(bits[i][c] for i, c in zip(layers, choice)) <= budget + 1e-9
    )


@pytest.mark.parametrize("budget", [1.6, 1.8, 2.0, math.log2(5), 2.5, math.log2(7), 4.0])
def test_no_other_choice_of_the_same_size_has_a_smaller_error(budget):
    for seed in range(20):
        errors, bits = _problem(seed)
        chosen = allocate(errors, bits, budget)
        assert sum(row[c] for row, c in zip(bits, chosen)) <= budget + 1e-6
        found = sum(row[c] for row, c in zip(errors, chosen))
        assert found == pytest.approx(_all_choices(errors, bits, budget), rel=1e-5)


def test_units_of_errors_and_bits_do_not_matter():
    errors, bits = _problem(3)
    assert allocate(errors * 1e-9, bits * 1e7, 2e7) == allocate(errors, bits, 2.0)


def test_layers_may_have_different_numbers_of_choices():
    errors, bits = [[3.0], [5.0, 4.0, 0.0], [2.0, 1.0]], [[10], [10, 20, 30], [10, 20]]
    assert allocate(errors, bits, 60) == [0, 2, 1]
    assert allocate(errors, bits, 50) == [0, 2, 0]


def test_without_any_error_every_choice_that_fits_will_do():
    chosen = allocate([[0.0, 0.0]] * 3, [[1.0, 2.0]] * 3, 4.0)
    assert sum(1 + c for c in chosen) <= 4


def test_too_small_a_budget_is_refused_with_the_least_that_does():
    with pytest.raises(UsageError, match=r"at least 1\.2346 bits.* got 1\.2"):
        allocate([[1.0, 0.0]], [[1.23456, 2.0]], 1.2)
    assert allocate([[1.0, 0.0]], [[1.23456, 2.0]], 1.2346) == [0]


def _network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


def _levels(model):
    return {name.removesuffix(".weight"): weight.codebook.num_levels for name, weight in model.weights.items()}


IMAGES = torch.randn(60, 3, 7, 7, generator=torch.Generator().manual_seed(1))
FAST = {"preset": "fast", "solver": "nearest"}
AUTO = {"kbits": "auto"} | FAST


@pytest.mark.parametrize("scale", ["layer", "channel"])
@pytest.mark.parametrize("quantize_bias", [False, True])
def test_the_model_is_no_larger_than_asked_for(scale, quantize_bias):
    options = {"scale": scale, "quantize_bias": quantize_bias}
    model = ldnq.quantize(_network(), [IMAGES], target_bits=3.3, **AUTO, **options)
    assert 3.0 < model.bits_per_weight <= 3.3 + 1e-6
    assert len(set(_levels(model).values())) > 1


def test_levels_that_were_chosen_and_named_ones_give_the_same_model():
    network = _network()
    auto = ldnq.quantize(network, [IMAGES], target_bits=2.4, **AUTO)
    named = ldnq.quantize(network, [IMAGES], kbits=3, **FAST, kbits_for=_levels(auto))
    assert _levels(named) == _levels(auto)
    for ours, theirs in zip(auto.module.state_dict().values(), named.module.state_dict().values()):
        assert torch.equal(ours, theirs)


def test_layers_that_are_named_keep_their_levels():
    model = ldnq.quantize(_network(), [IMAGES], target_bits=2.4, kbits_for={"0": 3, "7": 11}, **AUTO)
    levels = _levels(model)
    assert (levels["0"], levels["7"]) == (3, 11)
    assert model.bits_per_weight <= 2.4 + 1e-6


def test_more_bits_come_closer_to_the_network():
    network = _network()
    distances = []
    for bits in (1.7, 2.4, 3.4):
        model = ldnq.quantize(network, [IMAGES], target_bits=bits, **AUTO)
        distances.append(float((model.module(IMAGES) - network(IMAGES)).detach().square().mean()))
    assert distances == sorted(distances, reverse=True)


def test_fewer_bits_than_three_levels_take_are_refused():
    with pytest.raises(UsageError, match=r"at least 1\.6\d* bits"):
        ldnq.quantize(_network(), [IMAGES], target_bits=1.6, **AUTO)
