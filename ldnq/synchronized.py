"""Batch norms that see the batches of all processes as one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ldnq import ranks


class SynchronizedNorm(_BatchNorm):
    """What a batch norm becomes: as torch's own SyncBatchNorm, which is for GPUs alone."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        mean, variance, count = _statistics(x)
        if self.track_running_stats:
            self._remember(mean, variance * count / (count - 1))
        return _Normalized.apply(x, self.weight, self.bias, mean, variance, count, self.eps).to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Of what it was before, any."""

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (channels,) of `x` (n, channels, …) of all processes, and of how many values."""
    variance, mean = (entry.double() for entry in torch.var_mean(x, [0, *range(2, x.dim())], correction=0))
    count = mean.new_full((1,), x.numel() / x.shape[1])
    # In float64 the square of the mean may be taken off at the end.
    total, squares = mean * count, (variance + mean.square()) * count
    ranks.sum_(total, squares, count)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).float(), count.float()


class _Normalized(torch.autograd.Function):
    """`x` (n, channels, …) less `mean` over the root of `variance`, which depend on the `x` of all processes, of whose
    losses the sum is what counts (Ioffe and Szegedy, arXiv 1502.03167, section 3)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, count: Tensor,
        eps: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        to_bias = gradient.sum(axes)
        to_weight = inverse * ((x - mean.view(shape)) * gradient).sum(axes)
        of_all = torch.stack([to_bias, to_weight])
        ranks.sum_(of_all)
        offset, slope = of_all / count
        factor = inverse if weight is None else inverse * weight
        slope = inverse * slope
        constant = factor * (slope * mean - offset)
        to_x = (factor.view(shape) * gradient).addcmul_(x, -(factor * slope).view(shape)).add_(constant.view(shape))
        return to_x, None if weight is None else to_weight, None if weight is None else to_bias, None, None, None, None


@contextmanager
def synchronized(module: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Within the block, if `wanted` and there are several processes, the batch norms of `module` work together."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)] if wanted and ranks.size() > 1 else []
    kinds = [type(norm) for norm in norms]
    for norm in norms:
        norm.__class__ = SynchronizedNorm
    try:
        yield
    finally:
        for norm, kind in zip(norms, kinds):
            norm.__class__ = kind


def average_statistics(*modules: nn.Module) -> None:
    """Give the batch norms of each of `modules` the mean of what those of all processes remember."""
    norms = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]
    found = [entry for norm in norms for entry in (norm.running_mean, norm.running_var) if entry is not None]
    ranks.sum_(*found)
    for entry in found if ranks.size() > 1 else ():
        entry.div_(ranks.size())
