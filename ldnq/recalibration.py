"""Batch norms take up the statistics of the network that they are in now."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def batch_statistics(module: nn.Module, among: Iterable[nn.Module] | None = None) -> Iterator[list[_BatchNorm]]:
    """While inside, the batch norms of `module`, those `among` these if it says which, work with the statistics of each
    batch, and remember their means over all batches since; nothing else is in training mode. Yields them."""
    norms = [norm for norm in (module.modules() if among is None else among) if _remembers(norm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # None: the mean over all batches instead of a moving average.
        norm.momentum = None
        norm.training = True
    try:
        yield norms
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            norm.training = False


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor], among: Iterable[nn.Module] | None = None) -> None:
    """Give every batch norm, or those `among` these, the mean and variance of its inputs over `batches`, of two samples
    or more each."""
    with batch_statistics(module, among) as norms:
        for batch in batches if norms else ():
            if len(batch) > 1:
                module(batch)


def _remembers(module: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm) and module.track_running_stats
