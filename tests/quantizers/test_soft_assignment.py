import pytest
import torch

from ldnq.codebook import Bounds, Codebook
from ldnq.quantized import QuantizedWeight
from ldnq.quantizers.soft_assignment import SoftAssignment

FIVE = Codebook.power_of_two(5)


def _assignment(codes, weight, scale=1.0):
    codes = torch.tensor(codes, dtype=torch.uint8)
    assignment = SoftAssignment(QuantizedWeight(codes, torch.tensor([scale]), FIVE), torch.tensor(weight))
    return assignment, assignment.start(codes, torch.tensor(weight))


def test_it_starts_at_the_float_weight_between_its_code_and_the_next_level():
    assignment, latent = _assignment([3, 2, 1, 0], [1.3, 0.6, -1.6, -1.9], scale=2.0)
    assert assignment(latent).tolist() == pytest.approx([2.6, 1.2, -3.2, -3.8], rel=1e-5)


def test_a_code_that_makes_up_for_others_stays_one_end_of_the_pair():
    assignment, _ = _assignment([3, 4], [-0.8, 5.0])
    low, high = assignment(torch.full((2,), -9.0)), assignment(torch.full((2,), 9.0))
    assert low.tolist() == [0.0, 1.0]
    assert high.tolist() == [1.0, 2.0]


def test_it_becomes_hard_as_the_temperature_falls():
    assignment, latent = _assignment([3, 2, 3], [1.3, 0.6, 1.5001])
    assignment.temperature = 1e-5
    hard = assignment(latent)
    assert hard.tolist() == [1.0, 1.0, 2.0]
    assert torch.equal(FIVE.values(assignment.codes(latent)), hard)


def test_gradients_reach_latent_values_and_scale():
    assignment, latent = _assignment([3, 2], [1.3, 0.6], scale=2.0)
    latent.requires_grad_(True)
    assignment(latent).sum().backward()
    assert bool((latent.grad > 0).all())
    assert assignment.log_scale.grad.item() == pytest.approx(2 * 1.9, rel=1e-5)


def test_both_levels_of_a_pair_are_within_bounds():
    codes, weight = torch.tensor([2, 3, 3], dtype=torch.uint8), torch.tensor([0.9, 1.8, 1.2])
    bounds = Bounds(torch.tensor([2, 2, 3], dtype=torch.uint8), torch.tensor([2, 3, 4], dtype=torch.uint8))
    assignment = SoftAssignment(QuantizedWeight(codes, torch.tensor([1.0]), FIVE), weight, bounds)
    assert bool(torch.isfinite(assignment.start(codes, weight)).all())
    assert assignment(torch.full((3,), -9.0)).tolist() == [0.0, 0.0, 1.0]
    assert assignment(torch.full((3,), 9.0)).tolist() == [0.0, 1.0, 2.0]
    assert assignment.codes(torch.full((3,), 9.0)).tolist() == [2, 3, 4]
