"""How far a command is: any code may `track` a loop and `say` how a step of it went.

Where the command line has put up a `display` both are shown there; elsewhere they are lines of the log.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

log = logging.getLogger(__name__)

# Seconds: between two lines of the log about one loop, and how long one lasts that deserves a line at its end.
INTERVAL, LONG = 10.0, 2.0


@dataclass(eq=False)
class Loop:
    """A loop under way: what it does, how many steps of `total` are `done`, what is in work, and what was last said."""

    description: str
    total: int | None
    done: int = 0
    item: str = ""
    remark: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """As long again as the steps so far for every step that is left; None where nobody can tell."""
        return self.seconds / self.done * (self.total - self.done) if self.total and self.done else None


class Lines:
    """Lines of the log: what was said, and every few seconds how far a loop is."""

    def __init__(self) -> None:
        self.loops: list[Loop] = []
        self._last: dict[Loop, float] = {}

    def headline(self, text: str) -> None:
        """A new part of the run begins."""
        log.info("%s", text)

    def say(self, remark: str) -> None:
        """How a step went."""
        log.info("%s", self.step_of_loop(remark))
        if self.loops:
            self._last[self.loops[-1]] = time.monotonic()

    def step_of_loop(self, remark: str) -> str:
        """The `remark` after the step of the innermost loop that it is about."""
        if not self.loops:
            return remark
        loop = self.loops[-1]
        item = f", {loop.item}" if loop.item else ""
        return f"{loop.description} {loop.done + 1} of {loop.total}{item}: {remark}"

    def begin(self, loop: Loop) -> None:
        self.loops.append(loop)
        self._last[loop] = loop.started

    def step(self, loop: Loop) -> None:
        now, left = time.monotonic(), loop.seconds_left
        if now - self._last[loop] >= INTERVAL and left:
            self._last[loop] = now
            log.info("%s: %d of %s, %s left", loop.description, loop.done, loop.total, clock(left))

    def end(self, loop: Loop, whole: bool) -> None:
        self.loops.remove(loop)
        del self._last[loop]
        if whole and not self.loops and loop.seconds >= LONG:
            log.info("%s: done in %s", loop.description, clock(loop.seconds))


_display: ContextVar[Lines] = ContextVar("display", default=Lines())  # noqa: B039, empty between loops


@contextmanager
def display(console: "Console") -> Iterator[None]:
    """Show what happens within the block on the rich `console`, where it is a terminal."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    from ldnq.live import Live

    with Live(console) as live:
        token = _display.set(live)
        try:
            yield
        finally:
            _display.reset(token)


def track(
    items: Iterable[T], description: str, name: Callable[[T], str] | None = None, total: int | None = None
) -> Iterator[T]:
    """Iterate over `items`, shown as `description`, each by its `name`; `total` is for those without a length."""
    shown = _display.get()
    loop = Loop(description, len(items) if isinstance(items, Sized) else total)
    shown.begin(loop)
    whole = False
    try:
        for item in items:
            loop.item = name(item) if name else ""
            yield item
            loop.done += 1
            shown.step(loop)
        whole = True
    finally:
        shown.end(loop, whole)


def say(remark: str) -> None:
    """How a step of the innermost loop went: below its bar, or as a line where there is no display."""
    _display.get().say(remark)


def headline(text: str) -> None:
    """Head the display with what begins now."""
    _display.get().headline(text)


def clock(seconds: float) -> str:
    """Minutes and seconds, hours where there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
