"""Rounding whose gradient is that of something else."""

from torch import Tensor


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """`value`, with the gradient of `surrogate` (Bengio et al., arXiv 1308.3432)."""
    return surrogate + (value - surrogate).detach()


def sign(x: Tensor) -> Tensor:
    """1 where `x` is zero or more, else −1."""
    return (x >= 0).to(x.dtype) * 2 - 1
