"""XNOR-Net's quantizers against numbers computed by hand, and against convolutions of floats."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ldnq.quantizers.inputs import with_inputs
from ldnq.quantizers.xnor import SignInputs, SignWeight


def test_weights_are_signs_times_the_mean_magnitude_of_their_channel():
    weight = torch.tensor([[[[0.5]], [[-1.5]]], [[[0.0]], [[-0.2]]]])
    np.testing.assert_allclose(SignWeight()(weight).flatten(), [1.0, -1.0, 0.1, -0.1])
    quantized = SignWeight().quantized(weight)
    assert quantized.codebook.levels == (-1.0, 1.0)
    np.testing.assert_array_equal(quantized.dequantize(), SignWeight()(weight))


def test_the_gradient_of_weights_is_the_papers():
    latent = torch.tensor([[0.5, -1.5], [0.2, 0.4]], requires_grad=True)
    SignWeight()(latent).backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    # Two weights a channel; α is 1 and 0.3; −1.5 is beyond 1.
    np.testing.assert_allclose(latent.grad, [[1 * (0.5 + 1), 2 * 0.5], [3 * (0.5 + 0.3), 4 * (0.5 + 0.3)]], rtol=1e-6)


def test_weights_are_centred_over_inputs_and_clipped():
    latent = torch.tensor([[3.0, 0.0, 0.0]])
    SignWeight().clamp(latent)
    np.testing.assert_array_equal(latent, [[1.0, -1.0, -1.0]])
    alone = torch.tensor([[[[0.4, -2.0]]]])
    SignWeight().clamp(alone)
    np.testing.assert_allclose(alone.flatten(), [0.4, -1.0])


def test_the_gradient_of_inputs_passes_below_one():
    x = torch.tensor([[-0.0, -0.5, 1.5, -3.0]], requires_grad=True)
    y = SignInputs(nn.Linear(4, 1), norm=False).train()(x, lambda x: x)
    np.testing.assert_array_equal(y.detach(), [[1, -1, 1, -1]])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [[1, 1, 0, 0]])


def test_a_binary_convolution_is_one_of_floats_on_signs():
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    x = torch.randn(2, 4, 9, 9)
    signs, weight = np.where(x.numpy() >= 0, 1.0, -1.0), layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.copy_(SignWeight().quantized(weight).dequantize())
    module = with_inputs(nn.Sequential(layer), {"0": SignInputs(layer, norm=False)}).eval()
    # Counted: equal signs less different ones, times α.
    alpha = weight.abs().mean((1, 2, 3)).double()
    counted = F.conv2d(torch.from_numpy(signs), weight.sign().double(), None, 2, 1) * alpha.view(-1, 1, 1)
    np.testing.assert_allclose(module(x).detach(), counted + layer.bias.detach().view(-1, 1, 1), rtol=1e-4, atol=1e-5)


def test_outputs_are_scaled_by_the_mean_magnitude_of_their_window():
    layer = nn.Conv2d(3, 2, 3, padding=1, bias=False)
    x = torch.randn(1, 3, 5, 5)
    scaled = SignInputs(layer, norm=False, scale=True).eval()(x, layer)
    plain = SignInputs(layer, norm=False).eval()(x, layer)
    magnitude = F.avg_pool2d(x.abs().mean(1, keepdim=True), 3, 1, 1)
    np.testing.assert_allclose(scaled.detach(), (plain * magnitude).detach(), rtol=1e-5, atol=1e-6)


def test_a_batch_norm_comes_before_the_sign():
    x = torch.rand(64, 3) + 5
    inputs = SignInputs(nn.Linear(3, 2), norm=True).train()
    signs = inputs(x, lambda x: x)
    # All inputs are positive; around their mean half are not.
    assert 0.3 < float((signs > 0).float().mean()) < 0.7


def test_every_group_is_scaled_by_its_own_inputs():
    layer, x = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), torch.randn(1, 4, 5, 5)
    scaled = SignInputs(layer, norm=False, scale=True).eval()(x, layer)
    plain = SignInputs(layer, norm=False).eval()(x, layer)
    parts = [F.avg_pool2d(part.abs().mean(1, keepdim=True), 3, 1, 1).expand(-1, 3, -1, -1) for part in x.chunk(2, 1)]
    np.testing.assert_allclose(scaled.detach(), (plain * torch.cat(parts, 1)).detach(), rtol=1e-5, atol=1e-6)


def test_features_of_linear_layers_are_the_last_dimension():
    layer, x = nn.Linear(6, 3, bias=False), torch.rand(5, 7, 6) + 2 * torch.arange(6.0)
    inputs = SignInputs(layer, norm=True, scale=True).train()
    y = inputs(x, layer)
    normed = (x - x.mean((0, 1))) / (x.var((0, 1), unbiased=False) + 1e-5).sqrt()
    expected = layer(torch.where(normed >= 0, 1.0, -1.0)) * normed.abs().mean(-1, keepdim=True)
    np.testing.assert_allclose(y.detach(), expected.detach(), rtol=1e-4, atol=1e-5)
