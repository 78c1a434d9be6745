"""Rounding whose gradient is that of something else."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """`value`, bit for bit, with the gradient of `surrogate` (Bengio et al., arXiv 1308.3432)."""
    return _StraightThrough.apply(value.detach(), surrogate)


def sign(x: Tensor) -> Tensor:
    """1 where `x` is zero or more, else −1."""
    if torch.onnx.is_in_onnx_export():  # which has no copysign
        return (x >= 0).to(x.dtype) * 2 - 1
    # Adding zero makes a negative zero a positive one.
    return torch.copysign(torch.ones((), dtype=x.dtype, device=x.device), x + 0)


class _StraightThrough(Function):
    # As `surrogate + (value − surrogate).detach()`, but without two passes over all values.

    @staticmethod
    def forward(ctx: Any, value: Tensor, surrogate: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]
