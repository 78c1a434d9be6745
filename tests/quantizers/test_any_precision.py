"""Any-Precision's weights and inputs, at every width against the formulas of the paper."""

import numpy as np
import pytest
import torch
from torch import nn

from ldnq.quantizers.any_precision import AnyPrecision, SwitchedInputs, SwitchedTanh

WIDTHS = (1, 2, 4, 8, 32)


def latent(seed=0):
    return torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(seed))


def reference(w, bits):
    """`E|w| (2 q_k(tanh(w) / (2 max|tanh(w)|) + ½) − 1)` in float64, and how far q_k was from another level."""
    w = w.double().numpy()
    share = np.tanh(w) / np.abs(np.tanh(w)).max()
    if bits == 32:
        return np.abs(w).mean() * share, np.ones_like(share)
    position = (share / 2 + 0.5) * (2**bits - 1)
    doubt = np.abs(position - np.floor(position) - 0.5) / (2**bits - 1)
    return np.abs(w).mean() * (2 * np.floor(position + 0.5) / (2**bits - 1) - 1), doubt


@pytest.mark.parametrize("bits", WIDTHS)
def test_weights_of_every_width_are_those_of_the_paper(bits):
    quantizer = SwitchedTanh(WIDTHS)
    quantizer.switch(bits)
    expected, doubt = reference(latent(), bits)
    # By way of eight bits a value next to the middle of two levels may go to the other one.
    sure = doubt > (1e-6 if bits == 8 else 1 / 500)
    assert sure.mean() > 0.9
    np.testing.assert_allclose(quantizer(latent()).numpy()[sure], expected[sure], rtol=1e-5, atol=1e-7)


def test_weights_of_two_bits_by_hand():
    # E|w| = 1; tanh: 0, ±0.4621, ±0.9640; of eight bits 128, 189, 66, 255, 0; of two 2, 2, 1, 3, 0: levels ±1/3, ±1.
    quantizer = SwitchedTanh((2, 8))
    quantizer.switch(2)
    found = quantizer(torch.tensor([[0.0, 0.5, -0.5, 2.0, -2.0]]))
    np.testing.assert_allclose(found, [[1 / 3, 1 / 3, -1 / 3, 1, -1]], rtol=1e-6)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_gradient_passes_the_rounding_and_takes_the_mean_for_a_constant(bits):
    quantizer = SwitchedTanh(WIDTHS)
    quantizer.switch(bits)
    w, direction = latent().requires_grad_(), latent(1)
    (quantizer(w) * direction).sum().backward()
    v = latent().double().requires_grad_()
    (v.detach().abs().mean() * v.tanh() / v.tanh().abs().max() * direction.double()).sum().backward()
    np.testing.assert_allclose(w.grad, v.grad, rtol=1e-4, atol=1e-6)


def test_zeros_stay_finite():
    for bits in WIDTHS:
        quantizer = SwitchedTanh(WIDTHS)
        quantizer.switch(bits)
        assert torch.isfinite(quantizer(torch.zeros(2, 3))).all()


def test_inputs_have_as_many_values_as_the_width_says():
    inputs = SwitchedInputs(nn.Linear(5, 5), 32).eval()
    x = torch.tensor([-1.0, 0.2, 0.6, 1.0, 3.0])
    expected = {1: [0, 0, 1, 1, 1], 2: [0, 1 / 3, 2 / 3, 1, 1], 32: [0, 0.2, 0.6, 1, 3]}
    for bits, values in expected.items():
        inputs.switch(bits)
        np.testing.assert_allclose(inputs(x, lambda given: given), values, rtol=1e-6)
        assert inputs.spec() == {"kind": "any-precision", "bits": bits}


def test_the_method_trains_every_width():
    assert AnyPrecision().widths == WIDTHS
    assert AnyPrecision((4,)).weights(nn.Linear(2, 2)).width == 4
