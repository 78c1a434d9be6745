"""DoReFa-Net's quantizers against numbers computed by hand and gradients of the formulas."""

import numpy as np
import pytest
import torch
from torch import nn

from ldnq.quantizers.dorefa import TanhWeight, UnitInputs, round_gradient


def test_weights_of_two_bits_by_hand():
    # tanh: 0, ±0.4621, ±0.9640; halves of their shares of the largest, and ½: ½, 0.740, 0.260, 1, 0: thirds nearest.
    latent = torch.tensor([[0.0, 0.5, -0.5, 2.0, -2.0]])
    expected = [[1 / 3, 1 / 3, -1 / 3, 1.0, -1.0]]
    # ½ is half way between 1/3 and 2/3: to the even one of 1 and 2.
    np.testing.assert_allclose(TanhWeight(2)(latent), expected, rtol=1e-6)


def test_weights_of_one_bit_are_signs_times_the_mean_magnitude_of_the_layer():
    np.testing.assert_allclose(TanhWeight(1)(torch.tensor([[0.5, -1.5], [0.0, -2.0]])), [[1, -1], [1, -1]])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_what_is_stored_is_what_was_trained(bits):
    latent = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(bits))
    quantized = TanhWeight(bits).quantized(latent)
    assert quantized.codebook.num_levels == 2**bits
    np.testing.assert_allclose(quantized.dequantize(), TanhWeight(bits)(latent), atol=3e-7)


def test_weights_of_sixteen_bits_are_on_no_codebook():
    latent = torch.randn(4, 5)
    assert TanhWeight(16).quantized(latent) is None
    np.testing.assert_allclose(TanhWeight(16)(latent), latent.tanh() / latent.tanh().abs().max(), atol=2**-15)


def test_weights_of_nothing_but_zeros_stay_finite():
    assert torch.isfinite(TanhWeight(4)(torch.zeros(2, 3))).all()


def test_the_gradient_passes_the_rounding_and_not_the_rest():
    latent = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(5, 7, dtype=torch.float64)
    TanhWeight(3)(latent).backward(upstream)
    smooth = latent.detach().clone().requires_grad_()
    (smooth.tanh() / smooth.tanh().abs().max()).backward(upstream)
    np.testing.assert_allclose(latent.grad, smooth.grad, rtol=1e-12)


def test_the_gradient_of_one_bit_is_that_of_the_output():
    latent = torch.randn(5, 7, requires_grad=True)
    upstream = torch.randn(5, 7)
    TanhWeight(1)(latent).backward(upstream)
    np.testing.assert_array_equal(latent.grad, upstream)


@pytest.mark.parametrize("training", [True, False])
def test_inputs_are_clipped_and_rounded(training):
    inputs = UnitInputs(nn.Linear(6, 1), 2).train(training)
    x = torch.tensor([[-0.5, 0.1, 0.2, 0.6, 0.9, 1.5]])
    np.testing.assert_allclose(inputs(x, lambda x: x), [[0, 0, 1 / 3, 2 / 3, 1, 1]], rtol=1e-6)


def test_the_gradient_of_inputs_passes_between_zero_and_one():
    x = torch.tensor([[-0.5, 0.1, 0.6, 1.5]], requires_grad=True)
    UnitInputs(nn.Linear(4, 1), 2).train()(x, lambda x: x).sum().backward()
    np.testing.assert_array_equal(x.grad, [[0, 1, 1, 0]])


def test_gradients_are_rounded_within_the_largest_of_their_sample():
    gradient = torch.tensor([[0.3, -1.0], [10.0, 4.0]])
    # Of two bits: shares 0.65, 0, 1, 0.7 of three steps each, to 2/3, 0, 1, 2/3.
    expected = [[2 * (2 / 3 - 0.5), -1.0], [10.0, 20 * (2 / 3 - 0.5)]]
    np.testing.assert_allclose(round_gradient(gradient, 2, torch.zeros(2, 2)), expected, rtol=1e-5)


def test_rounded_gradients_are_right_on_average():
    gradient = torch.tensor([[0.3, -0.17, 1.0, 0.0]]).expand(20_000, 4)
    noise = torch.rand(gradient.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    np.testing.assert_allclose(round_gradient(gradient, 2, noise).mean(0)[[0, 1, 3]], [0.3, -0.17, 0.0], atol=0.01)


def test_gradients_are_rounded_in_training_alone():
    layer, x = nn.Linear(3, 8), torch.rand(16, 3)
    values = []
    for training in (True, False):
        layer.zero_grad()
        inputs = UnitInputs(layer, 32, gradient_bits=1).train(training)
        y = inputs(x, layer)
        np.testing.assert_array_equal(y.detach(), layer(x).detach())
        y.backward(torch.randn(16, 8, generator=torch.Generator().manual_seed(1)))
        values.append(layer.bias.grad.clone())
    assert not torch.allclose(*values)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_settled_values_become_the_same_weight_again_and_again(bits):
    latent = torch.randn(16, 9, generator=torch.Generator().manual_seed(0))
    quantizer = TanhWeight(bits)
    codes = quantizer.quantized(latent).codes
    for _ in range(20):
        latent = quantizer.settled(latent)
        np.testing.assert_array_equal(quantizer.quantized(latent).codes, codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_levels_of_bfloat16_are_those_of_float32(bits):
    x = torch.rand(4, 1000).bfloat16()
    rounded = UnitInputs(nn.Linear(1000, 1), bits).train()(x, lambda x: x)
    np.testing.assert_array_equal((rounded.float() * (2**bits - 1)).round(), (x.float() * (2**bits - 1)).round())


def test_rounded_gradients_of_bfloat16_are_right_on_average():
    gradient = torch.tensor([[0.3, -0.17, 1.0, 0.004]]).bfloat16().expand(20_000, 4)
    mean = round_gradient(gradient, 8).double().mean(0)
    np.testing.assert_allclose(mean, gradient[0].double(), atol=1e-3)


def test_gradients_are_rounded_before_an_activation_in_place():
    layer, x = nn.Linear(3, 8), torch.rand(16, 3)
    UnitInputs(layer, 32, gradient_bits=4).train()(x, layer).relu_().sum().backward()
    assert torch.isfinite(layer.weight.grad).all()
