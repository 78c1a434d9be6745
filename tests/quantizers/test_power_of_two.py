import copy

import pytest
import torch
from torch import nn

from ldnq.codebook import Codebook
from ldnq.quantized import QuantizationState, QuantizedWeight
from ldnq.quantizers.power_of_two import Rounding, trainable

FIVE = Codebook.power_of_two(5)


def _state(per_channel):
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()
    state = QuantizationState(copy.deepcopy(teacher), teacher)
    for name in ("0.weight", "2.weight", "2.bias"):
        shape = teacher.get_parameter(name).shape
        scale = torch.rand(shape[0] if per_channel else 1) + 0.5
        state.write(name, QuantizedWeight(torch.randint(0, 5, shape, dtype=torch.uint8), scale, FIVE))
    return state


@pytest.mark.parametrize("per_channel", [False, True], ids=["scale per layer", "scale per channel"])
def test_nothing_changes_until_something_is_learned(per_channel):
    state = _state(per_channel)
    before, names = dict(state.weights), list(state.student.state_dict())
    x = torch.randn(2, 3, 4, 4)
    expected = state.student(x)
    with trainable(state):
        torch.testing.assert_close(state.student(x), expected)
    assert list(state.student.state_dict()) == names
    torch.testing.assert_close(state.student(x), expected)
    for name, weight in state.weights.items():
        assert torch.equal(weight.codes, before[name].codes)
        torch.testing.assert_close(weight.scale, before[name].scale)
        assert not state.student.get_parameter(name).requires_grad


def test_gradient_steps_move_codes_and_scales_towards_the_target():
    state = _state(per_channel=True)
    wanted = copy.deepcopy(state.student)
    with torch.no_grad():
        other = QuantizedWeight(torch.randint(0, 5, (4, 3, 3, 3), dtype=torch.uint8), torch.full((4,), 0.7), FIVE)
        wanted[0].weight.copy_(other.dequantize())
    x = torch.randn(256, 3, 4, 4)
    with trainable(state) as trained:
        latent, rounding = trained["0.weight"]
        optimizer = torch.optim.Adam([latent, rounding.log_scale], 0.02)
        for _ in range(400):
            optimizer.zero_grad()
            (state.student[0](x) - wanted[0](x)).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                rounding.clamp(latent)
    found = state.weights["0.weight"]
    assert (found.codes == other.codes).float().mean() > 0.97
    torch.testing.assert_close(found.scale, other.scale, rtol=0.05, atol=0)
    assert torch.equal(state.student[0].weight.detach(), found.dequantize())


def test_latent_values_start_near_the_float_weight_in_the_cell_of_their_code():
    rounding = Rounding(QuantizedWeight(torch.zeros(1, 6, dtype=torch.uint8), torch.tensor([2.0]), FIVE), 2)
    codes = torch.tensor([[2, 2, 3, 3, 4, 0]], dtype=torch.uint8)
    # Least squares of the levels 0 0 1 1 2 -2 to the weight: a scale of 2.
    weight = torch.tensor([[0.4, -9.0, 2.0, 2.8, 3.2, -4.4]])
    expected = torch.tensor([[0.2 * 0.9, -0.5 * 0.9, 1.0, 1 + 0.4 * 0.9, 2 - 0.4 * 0.9, -2.0]])
    start = rounding.start(codes, weight)
    torch.testing.assert_close(start, expected)
    assert torch.equal(FIVE.nearest(start), codes)


def test_gradients_pass_the_rounding():
    weight = QuantizedWeight(torch.zeros(4, dtype=torch.uint8), torch.tensor([2.0]), FIVE)
    rounding = Rounding(weight, 1)
    latent = torch.tensor([-2.5, -0.3, 1.4, 7.0], requires_grad=True)
    rounding(latent).sum().backward()
    assert latent.grad.tolist() == [2.0, 2.0, 2.0, 2.0]
    # d/d(log α) of α (−2 + 0 + 1 + 2)
    assert rounding.log_scale.grad.item() == pytest.approx(2.0)


def test_latent_values_are_brought_back_into_the_range_of_the_levels():
    rounding = Rounding(QuantizedWeight(torch.zeros(3, dtype=torch.uint8), torch.tensor([2.0]), FIVE), 1)
    latent = torch.tensor([-2.5, 1.4, 7.0])
    rounding.clamp(latent)
    assert latent.tolist() == pytest.approx([-2.0, 1.4, 2.0])


def test_frozen_codes_leave_the_scale_to_learn():
    rounding = Rounding(QuantizedWeight(torch.zeros(2, dtype=torch.uint8), torch.tensor([2.0]), FIVE), 1)
    rounding.frozen = True
    latent = torch.tensor([0.9, 1.6], requires_grad=True)
    rounding(latent).sum().backward()
    assert latent.grad is None
    assert rounding.log_scale.grad.item() == pytest.approx(6.0)


def test_what_was_learned_before_an_error_is_kept_on_the_codebook():
    state = _state(per_channel=False)

    def interrupted():
        with trainable(state) as trained, torch.no_grad():
            trained["0.weight"][1].log_scale.add_(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert type(state.student[0]) is nn.Conv2d
    assert torch.equal(state.student[0].weight.detach(), state.weights["0.weight"].dequantize())
