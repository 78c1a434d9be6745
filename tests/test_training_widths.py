"""One step of training at several widths, against a network of two layers written by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn
from torch.nn.utils import parametrize

from ldnq.augmentation import Augmentation
from ldnq.preprocessing import Preprocessing
from ldnq.quantizers.any_precision import SwitchedTanh
from ldnq.training import Trainer, TrainingRecipe

SIZE, WIDTHS = 8, (1, 2, 8, 32)
PREPROCESSING = Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def network():
    torch.manual_seed(1)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 10), nn.ReLU(), nn.Linear(10, 4, bias=False))
    for layer in (module[1], module[3]):
        parametrize.register_parametrization(layer, "weight", SwitchedTanh(WIDTHS))
    return module


def trainer(folder, widths, supervision="hard"):
    images = torch.randint(256, (16, 3, SIZE, SIZE), dtype=torch.uint8), torch.arange(16) % 4
    return Trainer(
        network(), *images, PREPROCESSING, Augmentation(SIZE), TrainingRecipe(epochs=1, batch_size=16),
        Fabric(accelerator="cpu", devices=1), folder / "state.pt", "noise", widths=widths, supervision=supervision,
    )  # fmt: skip


def weight(w, bits):
    """Of the paper, in float64, with the gradient of what is rounded."""
    unrounded = w.detach().abs().mean() * w.tanh() / w.tanh().abs().max()
    if bits == 32:
        return unrounded
    code = ((w.tanh() / w.tanh().abs().max() / 2 + 0.5) * 255).round()
    code = ((2 * code * (2**bits - 1) + 255) / 510).floor()
    rounded = w.detach().abs().mean() * (2 * code / (2**bits - 1) - 1)
    return unrounded + (rounded - unrounded).detach()


@pytest.mark.parametrize("supervision", ["hard", "soft", "recursive"])
def test_gradients_of_all_widths_add_up(tmp_path, supervision):
    made = trainer(tmp_path, WIDTHS, supervision)
    x, labels = torch.randn(16, 3, SIZE, SIZE), torch.arange(16) % 4
    total, outputs = made._gradients(made.module, x, labels)

    first, bias, second = (parameter.detach().double().requires_grad_() for parameter in _parameters(made.module))
    given, loss = {}, 0.0
    for bits in (32, 8, 2, 1):
        hidden = (x.double().flatten(1) @ weight(first, bits).T + bias).relu()
        given[bits] = hidden @ weight(second, bits).T
        if bits == 32 or supervision == "hard":
            loss = loss + F.cross_entropy(given[bits], labels)
            continue
        teacher = given[32 if supervision == "soft" else {8: 32, 2: 8, 1: 2}[bits]].detach().softmax(1)
        # The cross-entropy with what the teacher says, but for the entropy of that.
        loss = loss + (teacher * (teacher.log() - given[bits].log_softmax(1))).sum(1).mean()
    loss.backward()
    assert float(total) == pytest.approx(loss.item(), rel=1e-4)
    np.testing.assert_allclose(outputs, given[32].detach(), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(_parameters(made.module), (first, bias, second)):
        np.testing.assert_allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def _parameters(module):
    first, second = module[1], module[3]
    return first.parametrizations.weight.original, first.bias, second.parametrizations.weight.original


def test_a_step_holds_no_more_for_four_widths_than_for_one(tmp_path):
    assert _peak(trainer(tmp_path, WIDTHS, "recursive")) <= 1.1 * _peak(trainer(tmp_path, (8,)))


def _peak(made):
    """The most bytes that backward passes waited for at once."""
    held = {"now": 0, "peak": 0}

    class Kept:
        def __init__(self, tensor):
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            held["now"] += self.bytes
            held["peak"] = max(held["peak"], held["now"])

        def __del__(self):
            held["now"] -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        made._gradients(made.module, torch.randn(16, 3, SIZE, SIZE), torch.arange(16) % 4)
    assert held["peak"] > 0
    return held["peak"]


def test_the_network_is_left_at_the_widest(tmp_path):
    made = trainer(tmp_path, (1, 2))
    made._gradients(made.module, torch.randn(16, 3, SIZE, SIZE), torch.arange(16) % 4)
    assert {part.width for part in made.module.modules() if isinstance(part, SwitchedTanh)} == {2}
