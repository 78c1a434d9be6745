import copy
import re

import pytest
import torch
from torch import nn

from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.quantized import QuantizationState, QuantizedWeight
from ldnq.stages.cascade import Cascade


def _state():
    teacher = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    teacher.requires_grad_(False)
    state = QuantizationState(copy.deepcopy(teacher).requires_grad_(True), teacher)
    codes = torch.randint(0, 3, (8, 3, 3, 3), dtype=torch.uint8)
    state.write("0.weight", QuantizedWeight(codes, torch.tensor([1.0]), Codebook.power_of_two(3)))
    return state


def _images():
    return CalibrationImages(torch.randn(64, 3, 8, 8), lambda batch: batch, None, 32, torch.device("cpu"))


def _distance(state, x):
    with torch.no_grad():
        return float((state.student(x) - state.teacher(x)).square().mean())


def test_the_float_part_learns_to_make_up_for_the_quantized_part():
    state, images = _state(), _images()
    before = copy.deepcopy(state.student.state_dict())
    start = _distance(state, images.images)
    Cascade(max_epochs=60, batch_size=32, lr=0.05, patience=60)(state, images, torch.Generator())
    after = state.student.state_dict()
    assert _distance(state, images.images) < 0.5 * start
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["5.weight"], before["5.weight"])
    assert not torch.equal(after["1.weight"], before["1.weight"])


def test_the_teacher_keeps_its_weights_and_batch_norm_statistics():
    state = _state()
    before = copy.deepcopy(state.teacher.state_dict())
    Cascade()(state, _images(), torch.Generator())
    assert all(torch.equal(before[name], tensor) for name, tensor in state.teacher.state_dict().items())
    assert not state.teacher.training
    assert not any(module.training for module in state.student.modules())


def test_training_ends_when_the_loss_stops_falling():
    state = _state()
    steps = []
    state.student[0].register_forward_hook(lambda *_: steps.append(1))
    Cascade(max_epochs=50, batch_size=32, lr=1e-12, patience=2, weight_decay=0)(state, _images(), torch.Generator())
    assert len(steps) < 50 * 2
    steps.clear()
    Cascade(max_epochs=5, batch_size=32, lr=1e-2, patience=50)(state, _images(), torch.Generator())
    assert len(steps) == 5 * 2


def test_a_network_with_nothing_left_to_train_is_handed_on():
    state = _state()
    state.student.requires_grad_(False)
    before = copy.deepcopy(state.student.state_dict())
    Cascade()(state, _images(), torch.Generator())
    assert all(torch.equal(before[name], tensor) for name, tensor in state.student.state_dict().items())


@pytest.mark.parametrize("lr", [1e6, 1e30], ids="rate {:g}".format)
def test_an_update_that_goes_astray_leaves_the_network_as_it_was(lr, caplog):
    state = _state()
    before = copy.deepcopy(state.student.state_dict())
    Cascade(lr=lr)(state, _images(), torch.Generator())
    assert re.search(r"no cascade update here: the loss is .* at step \d", caplog.text)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.student.state_dict().items())
    assert not any(module.training for module in state.student.modules())


def test_weights_that_overflow_in_the_last_step_are_not_kept(caplog):
    state = _state()
    before = copy.deepcopy(state.student.state_dict())
    Cascade(lr=1e38, max_epochs=1, weight_decay=1e6)(state, _images(), torch.Generator())
    assert "is not finite after it" in caplog.text
    assert all(torch.equal(before[name], tensor) for name, tensor in state.student.state_dict().items())
