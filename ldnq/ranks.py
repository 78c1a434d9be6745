"""The processes of a run, where it has several: which this one is, and what they tell each other (torch.distributed).

`ldnq.runtime` joins them; before that each is alone, for which nothing here does anything, and is known by the number
that its launcher gave it.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from ldnq.errors import LdnqError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ldnq.heartbeat import Heartbeat

T = TypeVar("T")

_size = 1
_heartbeat: "Heartbeat | None" = None


def started() -> int:
    """How many processes torchrun or srun has started together."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment["WORLD_SIZE"])
    if environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return 1
    return int(environment.get("SLURM_STEP_NUM_TASKS", 1))


def number() -> int:
    """Of these the number of this one, from 0."""
    if started() == 1:
        return 0
    return int(os.environ["RANK" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_PROCID"])


def size() -> int:
    """How many processes work together."""
    return _size


def rank() -> int:
    """Of these the number of this one; 0 where it is alone."""
    return number() if _size > 1 else 0


def first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def join(count: int, heartbeat: "Heartbeat") -> None:
    """From now on this is one of so many processes, which torch.distributed connects."""
    global _size, _heartbeat
    _size, _heartbeat = count, heartbeat


def part() -> None:
    """When all have come here, be alone again."""
    global _size, _heartbeat
    barrier()
    if _heartbeat:
        _heartbeat.stop()
    # What the heartbeats are counted in goes with the first process.
    barrier()
    _size, _heartbeat = 1, None


def leave(status: int) -> None:
    """End all, after what made this process end with the exit code `status` has been said."""
    if _heartbeat:
        _heartbeat.end_all(status)


def await_loss() -> None:
    """Something is wrong with the others: wait until it is known which of them is gone, which ends this process."""
    if _heartbeat:
        _heartbeat.await_loss()


def barrier() -> None:
    """Wait for all others to come here."""
    if _size > 1:
        import torch

        # On any backend, also where there is none for this kind of tensor by itself.
        sum_(torch.zeros(1))


def sum_(*tensors: "Tensor") -> None:
    """Replace `tensors`, of one type and device, by their sums over all processes, in one message."""
    if _size == 1 or not tensors:
        return
    import torch
    from torch import distributed

    if len(tensors) == 1 and tensors[0].is_contiguous():
        distributed.all_reduce(tensors[0])
        return
    with torch.no_grad():
        message = torch.cat([tensor.detach().flatten() for tensor in tensors])
        distributed.all_reduce(message)
        for tensor, found in zip(tensors, message.split([tensor.numel() for tensor in tensors])):
            tensor.detach().copy_(found.view_as(tensor))


def total(*values: float) -> list[float]:
    """The sums of numbers over all processes."""
    if _size == 1:
        return list(values)
    import torch

    sums = torch.tensor(values, dtype=torch.float64)
    sum_(sums)
    return sums.tolist()


def sum_gradients(parameters: Iterable["nn.Parameter"], *others: "Tensor") -> None:
    """Replace the gradients, and `others` of their type, by their sums over all processes."""
    if _size > 1:
        sum_(*others, *(parameter.grad for parameter in parameters if parameter.grad is not None))


def agreed(make: Callable[[], T]) -> T:
    """What the first process makes, or the error that it meets, in all of them."""
    if _size == 1:
        return make()
    import torch
    from torch import distributed

    found: list[Any] = [None, None]
    if first():
        try:
            found[0] = make()
        except (LdnqError, OSError) as error:
            found[1] = error
    distributed.broadcast_object_list(found, 0, device=torch.device("cpu"))
    if found[1] is not None:
        raise found[1]
    return found[0]


def mine(items: Iterable[T]) -> Iterator[T]:
    """Of `items` dealt to the processes one by one those of this one; all are drawn."""
    return islice(items, rank(), None, _size)


def share(count: int) -> slice:
    """Of `count` things in a row those of this process: as many as every other has, or one more."""
    if _size == 1:
        return slice(0, count)
    each, more = divmod(count, _size)
    start = rank() * each + min(rank(), more)
    return slice(start, start + each + (rank() < more))


def share_of_batch(count: int) -> tuple[slice, float]:
    """Of a batch of `count` samples those of this process, and what their mean counts in the sum over all processes. A
    batch with less than two for each is worked on by all, whole."""
    if count < 2 * _size:
        return slice(0, count), 1 / _size
    own = share(count)
    return own, (own.stop - own.start) / count
