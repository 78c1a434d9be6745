"""Curves of training for TensorBoard: any code may log them; a command decides whether they are written."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from torch import Tensor, nn

from ldnq import ranks
from ldnq.extras import require

_writer: ContextVar = ContextVar("writer", default=None)
_steps: ContextVar[Counter] = ContextVar("steps")


@contextmanager
def writing(folder: Path | None) -> Iterator[None]:
    """Write what is logged within the block as event files into `folder`, if there is one; raises `UsageError` where
    tensorboard is not installed."""
    if folder is None or not ranks.first():
        yield
        return
    require("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder) as writer:
        tokens = _writer.set(writer), _steps.set(Counter())
        try:
            yield
        finally:
            _writer.reset(tokens[0])
            _steps.reset(tokens[1])


def scalar(name: str, value: float | Tensor, step: int | None = None) -> None:
    """Log `value`, a number, at `step`, or one step after the last of that name."""
    if writer := _writer.get():
        steps = _steps.get()
        steps[name] = steps[name] + 1 if step is None else step
        writer.add_scalar(name, value, steps[name])


def histograms(module: nn.Module, step: int) -> None:
    """Log how the values of every parameter of `module` are distributed, where all are finite."""
    if writer := _writer.get():
        for name, parameter in module.named_parameters():
            if bool(parameter.isfinite().all()):
                writer.add_histogram(f"parameters/{name}", parameter.detach(), step)
