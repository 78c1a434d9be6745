import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.losses import divergence
from ldnq.quantized import QuantizationState
from ldnq.recalibration import recalibrate
from ldnq.solvers.nearest import Nearest
from ldnq.stages.distillation import Best, Distillation
from ldnq.stages.layerwise import Layerwise


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return (x + self.norm(self.conv(x))).relu()


def _network():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), Residual(), Residual(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    # As a trained network's, its batch norms know their inputs.
    recalibrate(network, [torch.randn(200, 3, 8, 8)])
    return network


def _images(count=40, augmentation=None):
    images = CalibrationImages(torch.randn(count, 3, 8, 8), lambda batch: batch, augmentation, 32, torch.device("cpu"))
    return images.set_apart(0.2, torch.Generator().manual_seed(0))


def _rounded(images, kbits=3):
    teacher = _network().requires_grad_(False)
    # A teacher that tells inputs apart.
    with torch.no_grad():
        teacher[-1].weight.mul_(20)
    state = QuantizationState(copy.deepcopy(teacher).requires_grad_(True), teacher)
    return Layerwise(Nearest(), Codebook.power_of_two(kbits))(state, images, torch.Generator())


def _distance(state, images):
    with torch.no_grad():
        return float(divergence(state.student(images.images), state.teacher(images.images)))


SHORT = Distillation(steps=60, batch_size=16, travel=1.5, lr=0.01, decay=0.8)


def test_the_student_comes_nearer_to_the_teacher_on_images_it_has_not_seen():
    images, unseen = _images(), _images(200)
    state = _rounded(images)
    before, start = dict(state.weights), _distance(state, unseen)
    state = SHORT(state, images, torch.Generator().manual_seed(0))
    assert _distance(state, unseen) < 0.5 * start
    changed = sum(int((before[name].codes != weight.codes).sum()) for name, weight in state.weights.items())
    assert changed > 10


def test_what_comes_out_is_on_the_codebook_and_frozen():
    images = _images()
    state = SHORT(_rounded(images), images, torch.Generator())
    for name, weight in state.weights.items():
        parameter = state.student.get_parameter(name)
        assert torch.equal(parameter.detach(), weight.dequantize())
        assert not parameter.requires_grad
    assert list(state.student.state_dict()) == list(state.teacher.state_dict())
    assert not any(module.training for module in state.student.modules())


def test_the_teacher_stays_as_it_is():
    images = _images()
    state = _rounded(images)
    before = copy.deepcopy(state.teacher.state_dict())
    SHORT(state, images, torch.Generator())
    assert all(torch.equal(before[name], tensor) for name, tensor in state.teacher.state_dict().items())
    assert not any(module.training for module in state.teacher.modules())


def test_batch_norm_keeps_its_statistics_and_learns_its_factors():
    images = _images(400)
    state = _rounded(images)
    before = copy.deepcopy(state.student[1].state_dict())
    state = SHORT(state, images, torch.Generator())
    norm = state.student[1]
    assert torch.equal(norm.running_mean, before["running_mean"])
    assert torch.equal(norm.running_var, before["running_var"])
    assert not torch.equal(norm.weight, before["weight"])


def test_weights_of_layers_that_stay_float_are_left_alone():
    images = _images()
    teacher = _network()
    state = QuantizationState(copy.deepcopy(teacher), teacher)
    state = Layerwise(Nearest(), Codebook.power_of_two(3), skip=("7",))(state, images, torch.Generator())
    state = SHORT(state, images, torch.Generator())
    assert torch.equal(state.student[7].weight, teacher[7].weight)
    assert not torch.equal(state.student[7].bias, teacher[7].bias)


def test_a_training_that_goes_astray_ends_where_it_began():
    images = _images()
    state = _rounded(images, kbits=11)
    before = copy.deepcopy(state.student.state_dict())
    state = replace(SHORT, travel=180.0, lr=30.0)(state, images, torch.Generator())
    for name, tensor in state.student.state_dict().items():
        torch.testing.assert_close(tensor, before[name])


@pytest.mark.parametrize("lr", [1e6, 1e30], ids="rate {:g}".format)
def test_a_loss_that_explodes_ends_the_training_at_its_best(lr, caplog):
    images = _images()
    state = _rounded(images)
    before = copy.deepcopy(state.student.state_dict())
    state = replace(SHORT, lr=lr)(state, images, torch.Generator())
    assert re.search(r"ends early: the loss is .* at step \d+ of 60; the best network so far is kept", caplog.text)
    for name, tensor in state.student.state_dict().items():
        torch.testing.assert_close(tensor, before[name])


def test_equal_seeds_give_equal_students():
    images = _images(augmentation=Augmentation(8))
    state = _rounded(images)
    students = [
        SHORT(copy.deepcopy(state), images, torch.Generator().manual_seed(5)).student.state_dict() for _ in range(2)
    ]
    assert all(torch.equal(one, two) for one, two in zip(*(student.values() for student in students)))


def test_a_single_image_is_no_training_set(caplog):
    images = _images(1)
    state = _rounded(images)
    before = copy.deepcopy(state.student.state_dict())
    state = SHORT(state, images, torch.Generator())
    assert "needs two calibration images" in caplog.text
    assert all(torch.equal(before[name], tensor) for name, tensor in state.student.state_dict().items())


def test_the_best_parameters_are_those_of_the_lowest_loss():
    module = nn.Linear(2, 1)
    best = Best(module, 1.0)
    kept = copy.deepcopy(module.state_dict())
    nn.init.zeros_(module.weight)
    best.offer(module, 1.5)
    best.restore(module)
    assert torch.equal(module.weight, kept["weight"])


def test_a_start_without_a_usable_loss_can_be_restored():
    module = nn.Linear(2, 1)
    kept = module.weight.detach().clone()
    best = Best(module, float("nan"))
    nn.init.zeros_(module.weight)
    best.restore(module)
    assert torch.equal(module.weight, kept)
