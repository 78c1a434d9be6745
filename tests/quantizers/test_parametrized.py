import copy

import pytest
import torch
from torch import nn

from ldnq.codebook import Codebook
from ldnq.quantized import QuantizationState, QuantizedWeight
from ldnq.quantizers.parametrized import parameter_groups, trainable
from ldnq.quantizers.power_of_two import Rounding
from ldnq.quantizers.soft_assignment import SoftAssignment

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
    with trainable(state, Rounding):
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
    with trainable(state, Rounding) as trained:
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


def test_what_was_learned_before_an_error_is_kept_on_the_codebook():
    state = _state(per_channel=False)

    def interrupted():
        with trainable(state, Rounding) as trained, torch.no_grad():
            trained["0.weight"][1].log_scale.add_(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert type(state.student[0]) is nn.Conv2d
    assert torch.equal(state.student[0].weight.detach(), state.weights["0.weight"].dequantize())


@pytest.mark.parametrize("quantizer", [Rounding, SoftAssignment])
def test_weights_not_named_stay_fixed(quantizer):
    state = _state(per_channel=True)
    fixed = state.student[2].weight.clone()
    with trainable(state, quantizer, ["0.weight"]) as trained:
        assert list(trained) == ["0.weight"]
        state.student(torch.randn(2, 3, 4, 4)).sum().backward()
        assert trained["0.weight"][0].grad is not None
    assert torch.equal(state.student[2].weight, fixed)
    assert type(state.student[0]) is nn.Conv2d


def test_an_optimizer_learns_latent_values_scales_and_vectors_but_no_float_weight():
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).eval()
    state = QuantizationState(copy.deepcopy(teacher), teacher)
    codes = torch.randint(0, 5, (4, 3, 3, 3), dtype=torch.uint8)
    state.write("0.weight", QuantizedWeight(codes, torch.rand(4), FIVE))
    with trainable(state, Rounding) as trained:
        latents, others = parameter_groups(state.student, trained, 0.1, 0.2)
        assert (latents["lr"], others["lr"]) == (0.1, 0.2)
        assert [parameter.shape for parameter in latents["params"]] == [(4, 3, 3, 3)]
        found = {id(parameter) for parameter in others["params"]}
        rest = (state.student[0].bias, state.student[1].weight, state.student[1].bias, state.student[3].bias)
        assert found == {id(parameter) for parameter in (trained["0.weight"][1].log_scale, *rest)}
