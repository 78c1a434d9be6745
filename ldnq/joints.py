"""What the output of a layer meets: the batch norm or bias that can correct it, the branch that is added to it."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ldnq.walk import Walk
from ldnq.wiring import Wiring

# Of the largest factor of a batch norm: a channel with less has no part in the sum that follows.
NEGLIGIBLE = 1e-3


class Receiver(Protocol):
    """Corrects the output of a layer channel by channel, at no cost when the network runs."""

    takes_gain: bool

    def take(self, gain: Tensor, found: Tensor, wanted: Tensor) -> None:
        """Multiply the output by `gain` and move its mean from `found` to `wanted`, each (channels,); outputs are meant
        without the layer's bias, and `wanted` is the teacher's."""


class BatchNormReceiver:
    """The batch norm after a layer: its statistics become those of the student, its offset takes what is left."""

    takes_gain = True

    def __init__(self, norm: _BatchNorm, teacher: _BatchNorm, bias: Tensor | None, teacher_bias: Tensor | None) -> None:
        self.norm, self.teacher = norm, teacher
        self.bias = 0.0 if bias is None else bias
        self.teacher_bias = 0.0 if teacher_bias is None else teacher_bias

    @torch.no_grad()
    def take(self, gain: Tensor, found: Tensor, wanted: Tensor) -> None:
        norm, teacher = self.norm, self.teacher
        variance = teacher.running_var.double() + teacher.eps
        missing = wanted + self.teacher_bias - teacher.running_mean
        norm.running_mean.copy_(found + self.bias)
        norm.running_var.copy_((variance / gain.square() - teacher.eps).clamp(min=0))
        norm.weight.copy_(teacher.weight)
        norm.bias.copy_(teacher.bias + teacher.weight / variance.sqrt() * missing)


class BiasReceiver:
    """The bias of a layer, which takes the offset alone."""

    takes_gain = False

    def __init__(self, bias: Tensor, teacher_bias: Tensor) -> None:
        self.bias, self.teacher_bias = bias, teacher_bias

    @torch.no_grad()
    def take(self, gain: Tensor, found: Tensor, wanted: Tensor) -> None:
        self.bias.copy_(self.teacher_bias + wanted - found)


class Joints:
    """The joints of all layers of a `student` and its `teacher`, which are wired alike."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        self.student, self.teacher = Wiring(student), Wiring(teacher)
        self.modules = student, teacher

    def receiver(self, layer: str) -> Receiver | None:
        """What can correct the output of `layer`; None where nothing can."""
        bias, teacher_bias = (module.get_submodule(layer).bias for module in self.modules)
        if norm := self.student.batch_norm_after(layer):
            ours, theirs = (module.get_submodule(norm) for module in self.modules)
            return BatchNormReceiver(ours, theirs, bias, teacher_bias)
        return BiasReceiver(bias, teacher_bias) if bias is not None else None

    def correction(self, layer: str) -> Callable[[Walk, Walk], Tensor | float]:
        """What the output of `layer` would have to add to make up for the error of the other branch of a residual
        block, in the student's and the teacher's pass of a batch; 0 where no other branch joins it."""
        addend = self.student.addend(layer)
        if addend is None:
            return lambda student, teacher: 0.0
        factor = self._factor(layer)
        return lambda student, teacher: (teacher.value(addend) - student.value(addend)) * factor

    def _factor(self, layer: str) -> Tensor | float:
        """What turns the sum's units into those of the layer's output."""
        norm = self.teacher.batch_norm_after(layer)
        if norm is None:
            return 1.0
        norm = self.modules[1].get_submodule(norm)
        used = norm.weight.abs() > NEGLIGIBLE * norm.weight.abs().max()
        factor = torch.where(used, (norm.running_var + norm.eps).sqrt() / norm.weight, 0.0)
        return factor.detach().view(-1, 1, 1)
