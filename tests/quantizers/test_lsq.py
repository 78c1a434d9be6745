"""LSQ's gradients against the paper's equations, and what is stored against what was trained."""

import numpy as np
import pytest
import torch
from torch import nn

from ldnq.codebook import Codebook
from ldnq.errors import UsageError
from ldnq.quantizers.lsq import Lsq, StepInputs, StepWeight
from ldnq.quantizers.power_of_two import PowerOfTwo


def of_three_bits(step):
    return StepWeight(Codebook(tuple(float(level) for level in range(-3, 4))), torch.tensor(step))


def test_weights_and_gradients_by_hand():
    quantizer = of_three_bits(0.5)
    latent = torch.tensor([[0.6, -0.4, 2.0, -9.0]], requires_grad=True)
    weight = quantizer(latent)
    np.testing.assert_allclose(weight.detach(), [[0.5, -0.5, 1.5, -1.5]])
    weight.backward(torch.ones(1, 4))
    # Equation 5: of the weights, 1 within the range.
    np.testing.assert_allclose(latent.grad, [[1, 1, 0, 0]])
    # Equation 3: −w/s + round(w/s) within, ±Q beyond; section 2.2: over √(N Q).
    expected = ((-1.2 + 1) + (0.8 - 1) + 3 - 3) / (4 * 3) ** 0.5
    np.testing.assert_allclose(quantizer.step.grad, expected, rtol=1e-5)


@pytest.mark.parametrize("step", [0.3, -0.3])
def test_what_is_stored_is_what_was_trained(step):
    latent = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    quantizer = of_three_bits(step)
    quantized = quantizer.quantized(latent)
    assert (quantized.scale > 0).all()
    np.testing.assert_allclose(quantized.dequantize(), quantizer(latent).detach(), rtol=1e-6)


def test_weights_begin_with_the_papers_step_and_symmetric_levels():
    layer = nn.Linear(20, 10)
    quantizer = Lsq(wbits=2).weights(layer)
    assert quantizer.codebook.levels == (-1.0, 0.0, 1.0)
    np.testing.assert_allclose(quantizer.step.detach(), 2 * layer.weight.abs().mean().item(), rtol=1e-6)
    assert Lsq(wbits=32).weights(layer) is None


def test_inputs_find_their_step_and_whether_they_are_signed():
    inputs = StepInputs(nn.Linear(4, 1), 4)
    x = torch.rand(64, 4)
    inputs.start(x)
    assert inputs.ends == (0, 15)
    np.testing.assert_allclose(inputs.step.detach(), 2 * x.mean() / 15**0.5, rtol=1e-6)
    inputs.start(x - 0.5)
    assert inputs.ends == (-8, 7)
    again = StepInputs(nn.Linear(4, 1), **inputs.options())
    assert again.ends == inputs.ends


def test_inputs_are_the_same_in_training_and_after():
    inputs = StepInputs(nn.Linear(4, 1), 3)
    x = torch.rand(64, 4) * 3
    inputs.start(x)
    trained, used = (inputs.train(training)(x, lambda x: x).detach() for training in (True, False))
    np.testing.assert_allclose(trained, used, rtol=1e-6)
    np.testing.assert_allclose(used / inputs.step.detach(), (used / inputs.step.detach()).round(), atol=1e-6)
    assert used.max() <= 7 * inputs.step


@pytest.mark.parametrize("scale", ["layer", "channel"])
def test_powers_of_two_begin_at_the_nearest_levels(scale):
    layer = nn.Conv2d(3, 4, 3)
    quantizer = PowerOfTwo(5, scale).weights(layer)
    quantized = quantizer.quantized(layer.weight.detach())
    assert quantized.codebook == Codebook.power_of_two(5)
    assert quantized.scale.numel() == (4 if scale == "channel" else 1)
    error = (quantized.dequantize() - layer.weight).square().mean() / layer.weight.square().mean()
    assert error < 0.1


def test_powers_of_two_keep_weights_that_are_on_them():
    layer = nn.Conv2d(3, 4, 3)
    codebook = Codebook.power_of_two(5)
    levels = codebook.values(torch.randint(5, layer.weight.shape, generator=torch.Generator().manual_seed(0)))
    layer.weight.data = 0.17 * levels
    quantized = PowerOfTwo(5).weights(layer).quantized(layer.weight.detach())
    np.testing.assert_allclose(quantized.dequantize(), layer.weight.detach(), rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_gradient_of_the_step_survives_bfloat16(bits):
    x, upstream = torch.rand(32, 400), torch.randn(32, 400)
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        inputs = StepInputs(nn.Linear(400, 1), bits).train()
        inputs.start(x)
        inputs(x.bfloat16().to(dtype), lambda x: x).backward(upstream.bfloat16().to(dtype))
        gradients.append(float(inputs.step.grad))
    assert gradients[1] == pytest.approx(gradients[0], rel=0.02, abs=1e-3)


def test_signed_inputs_of_one_bit_are_refused():
    with pytest.raises(UsageError, match="abits of 2 or more"):
        StepInputs(nn.Linear(4, 1), 1).start(torch.randn(8, 4))
