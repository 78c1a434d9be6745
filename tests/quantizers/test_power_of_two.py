import pytest
import torch

from ldnq.codebook import Bounds, Codebook
from ldnq.quantized import QuantizedWeight
from ldnq.quantizers.power_of_two import Rounding

FIVE = Codebook.power_of_two(5)


def _rounding(scale=2.0):
    return Rounding(QuantizedWeight(torch.zeros(4, dtype=torch.uint8), torch.tensor([scale]), FIVE), torch.zeros(4))


def test_values_are_rounded_and_gradients_pass():
    rounding = _rounding()
    latent = torch.tensor([-2.5, -0.3, 1.4, 7.0], requires_grad=True)
    weight = rounding(latent)
    assert weight.tolist() == pytest.approx([-4.0, 0.0, 2.0, 4.0])
    weight.sum().backward()
    assert latent.grad.tolist() == pytest.approx([2.0, 2.0, 2.0, 2.0])
    # d/d(log α) of α (−2 + 0 + 1 + 2)
    assert rounding.log_scale.grad.item() == pytest.approx(2.0)


def test_latent_values_are_brought_back_into_the_range_of_the_levels():
    latent = torch.tensor([-2.5, 1.4, 7.0])
    _rounding().clamp(latent)
    assert latent.tolist() == pytest.approx([-2.0, 1.4, 2.0])


def test_latent_values_start_near_the_float_weight_in_the_cell_of_their_code():
    codes = torch.tensor([2, 2, 3, 3, 4, 0], dtype=torch.uint8)
    weight = torch.tensor([0.2, -4.5, 1.0, 1.4, 1.6, -2.2])
    start = _rounding().start(codes, weight)
    torch.testing.assert_close(start, torch.tensor([0.2 * 0.9, -0.5 * 0.9, 1.0, 1 + 0.4 * 0.9, 2 - 0.4 * 0.9, -2.0]))
    assert torch.equal(_rounding().codes(start), codes)


def test_codes_stay_within_bounds_and_latent_values_in_their_cells():
    bounds = Bounds(torch.tensor([2, 2, 3, 0], dtype=torch.uint8), torch.tensor([2, 4, 4, 4], dtype=torch.uint8))
    weight = QuantizedWeight(torch.tensor([2, 3, 3, 0], dtype=torch.uint8), torch.tensor([2.0]), FIVE)
    rounding = Rounding(weight, torch.zeros(4), bounds)
    latent = torch.tensor([1.9, -1.0, 0.1, -7.0])
    assert rounding.codes(latent).tolist() == [2, 2, 3, 0]
    assert rounding(latent).tolist() == pytest.approx([0.0, 0.0, 2.0, -4.0])
    rounding.clamp(latent)
    assert latent.tolist() == pytest.approx([0.5, -0.5, 0.5, -2.0])
    assert rounding.codes(latent).tolist() == [2, 2, 3, 0]
