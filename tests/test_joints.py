import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldnq.joints import Joints
from ldnq.walk import Walk


def _network(bias):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        for tensor in (network[1].weight, network[1].bias, network[1].running_mean):
            tensor.normal_()
        network[1].running_var.uniform_(0.5, 2)
    return network


@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
def test_batch_norm_takes_up_gain_and_offset(bias):
    teacher = _network(bias)
    student = copy.deepcopy(teacher)
    x = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        wanted = teacher[:2](x)
        # A layer that is wrong by a factor and an offset of each channel.
        factor, offset = torch.rand(4) + 0.5, torch.randn(4)
        student[0].weight.copy_(teacher[0].weight / factor.view(-1, 1, 1, 1))
        outputs = F.conv2d(x, teacher[0].weight).mean((0, 2, 3))
        student[1].weight.normal_()
        receiver = Joints(student, teacher).receiver("0")
        assert receiver.takes_gain
        receiver.take(factor, outputs / factor, outputs + offset)
    scale = teacher[1].weight / (teacher[1].running_var + teacher[1].eps).sqrt()
    expected = wanted + (scale * offset).view(-1, 1, 1)
    torch.testing.assert_close(student[:2](x), expected, rtol=1e-4, atol=1e-5)


def test_a_bias_takes_up_the_offset():
    teacher = _network(False)
    student = copy.deepcopy(teacher)
    receiver = Joints(student, teacher).receiver("3")
    assert not receiver.takes_gain
    receiver.take(torch.ones(2), torch.tensor([1.0, 2.0]), torch.tensor([1.5, 0.0]))
    torch.testing.assert_close(student[3].bias - teacher[3].bias, torch.tensor([0.5, -2.0]))


def test_a_layer_with_neither_has_no_receiver():
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU())
    assert Joints(network, network).receiver("0") is None


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.first(x)
        return self.norm(self.conv(x)) + x


def test_the_correction_makes_the_sum_what_the_teacher_has():
    teacher = Residual().eval()
    with torch.no_grad():
        teacher.norm.weight.normal_()
        teacher.norm.weight[2] = 0
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.first.weight += 0.1
    x = torch.randn(5, 3, 6, 6)
    joints = Joints(student, teacher)
    walks = Walk(joints.student, x), Walk(joints.teacher, x)
    assert joints.correction("first")(*walks) == 0
    with torch.no_grad():
        output = teacher.conv(teacher.first(x)) + joints.correction("conv")(*walks)
        found = teacher.norm(output) + student.first(x)
    used = [0, 1, 3]
    torch.testing.assert_close(found[:, used], teacher(x)[:, used], rtol=1e-4, atol=1e-5)
    # A channel that batch norm switches off cannot make up for anything.
    assert torch.isfinite(output).all()
