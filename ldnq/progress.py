"""Progress bars that only a terminal sees: any code may `track` a loop; the command line decides on the `display`."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_display: ContextVar = ContextVar("display", default=None)


@contextmanager
def display(console) -> Iterator[None]:
    """Show the loops tracked within the block on the rich `console`, where it is a terminal."""
    if not console.is_terminal:
        yield
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        token = _display.set(progress)
        try:
            yield
        finally:
            _display.reset(token)


def track(items: Iterable[T], description: str) -> Iterator[T]:
    """Iterate over `items`, shown as `description` where a display is on."""
    progress = _display.get()
    if progress is None:
        yield from items
        return
    task = progress.add_task(description, total=len(items) if isinstance(items, Sized) else None)
    try:
        for item in items:
            yield item
            progress.advance(task)
    finally:
        progress.remove_task(task)
