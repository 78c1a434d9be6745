"""Batch norms that see the batches of all processes as one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ldnq import ranks


class SynchronizedNorm(_BatchNorm):
    """What a batch norm becomes: as torch's own SyncBatchNorm, which is for GPUs alone."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        count = x.new_full((1,), x.numel() / x.shape[1])
        sums = _Sum.apply(torch.cat([x.sum(axes), count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        variance = _Sum.apply((x - mean.view(shape)).square().sum(axes)) / count
        if self.track_running_stats:
            self._remember(mean.detach(), variance.detach() * count / (count - 1))
        y = (x - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Of what it was before, any."""

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Sum(torch.autograd.Function):
    """The sum over all processes, of whose losses the sum is what counts."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        ranks.sum_(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        ranks.sum_(gradient)
        return gradient


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
