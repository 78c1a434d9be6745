import copy
import re

import torch
from torch import nn

from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.quantized import QuantizationState
from ldnq.solvers.nearest import Nearest
from ldnq.stages.blocks import BlockReconstruction
from ldnq.stages.layerwise import Layerwise


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return (x + self.two(self.norm(self.one(x)).relu())).relu()


def _network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Residual(), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()  # fmt: skip


def _images(count=48):
    images = CalibrationImages(torch.randn(count, 3, 8, 8), lambda batch: batch, None, 32, torch.device("cpu"))
    return images.set_apart(0.2, torch.Generator().manual_seed(0))


def _rounded(images, network=None):
    teacher = (network or _network()).requires_grad_(False)
    state = QuantizationState(copy.deepcopy(teacher).requires_grad_(True), teacher)
    return Layerwise(Nearest(), Codebook.power_of_two(3))(state, images, torch.Generator())


@torch.no_grad()
def _error(state, x, upto):
    target = state.teacher[:upto](x)
    return float((state.student[:upto](x) - target).square().sum() / target.square().sum())


def test_blocks_come_nearer_to_those_of_the_teacher_on_images_not_seen():
    images, unseen = _images(), torch.randn(200, 3, 8, 8)
    state = _rounded(images)
    before = [_error(state, unseen, upto) for upto in (3, 4)]
    outside = {name: weight for name, weight in state.weights.items() if name[0] not in "23"}
    state = BlockReconstruction(steps=150)(state, images, torch.Generator().manual_seed(0))
    after = [_error(state, unseen, upto) for upto in (3, 4)]
    assert all(new < 0.9 * old for new, old in zip(after, before))
    assert all(state.weights[name] is weight for name, weight in outside.items())
    for name, weight in state.weights.items():
        assert torch.equal(state.student.get_parameter(name).detach(), weight.dequantize())
        assert not state.student.get_parameter(name).requires_grad
    assert list(state.student.state_dict()) == list(state.teacher.state_dict())


def test_a_block_that_got_worse_is_put_back():
    images = _images()
    state = _rounded(images)
    before, weights = copy.deepcopy(state.student.state_dict()), dict(state.weights)
    state = BlockReconstruction(steps=5, latent_lr=1e4, lr=1e3)(state, images, torch.Generator())
    assert all(torch.equal(before[name], tensor) for name, tensor in state.student.state_dict().items())
    assert state.weights == weights


def test_a_single_image_is_no_training_set(caplog):
    images = _images(1)
    state = _rounded(images)
    before = copy.deepcopy(state.student.state_dict())
    state = BlockReconstruction(steps=5)(state, images, torch.Generator())
    assert all(torch.equal(before[name], tensor) for name, tensor in state.student.state_dict().items())
    assert "needs two calibration images" in caplog.text


def test_a_network_without_blocks_stays_as_it_is_and_that_is_said(caplog):
    images = _images()
    state = _rounded(images, nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval())
    before = copy.deepcopy(state.student.state_dict())
    state = BlockReconstruction(steps=5)(state, images, torch.Generator())
    assert all(torch.equal(before[name], tensor) for name, tensor in state.student.state_dict().items())
    assert "no residual blocks" in caplog.text


def test_a_block_that_goes_astray_stays_as_it_was(caplog):
    images = _images()
    state = _rounded(images)
    before = copy.deepcopy(state.student.state_dict())
    weights = dict(state.weights)
    BlockReconstruction(steps=20, latent_lr=1e30, lr=1e30)(state, images, torch.Generator())
    assert re.search(r"block 2 stays as it was: the loss is .* at step \d+ of 20", caplog.text)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.student.state_dict().items())
    assert all(state.weights[name] is weight for name, weight in weights.items())
