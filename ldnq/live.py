"""The display of a terminal: what the command is at, a bar for every loop under way, and what was last said of it."""

import logging
import time
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from ldnq.progress import LONG, Lines, Loop, clock

log = logging.getLogger(__name__)


class Live(Lines):
    """Bars on `console` while entered, gone at the end; a line stays of every loop that took a while."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.started = time.monotonic()
        self.head = "starting"
        self.bars = _Bars(self, console)

    def __enter__(self) -> "Live":
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def headline(self, text: str) -> None:
        self.head = text
        log.debug("%s", text)

    def say(self, remark: str) -> None:
        if self.loops:
            self.loops[-1].remark = remark
        log.debug("%s", self.step_of_loop(remark))

    def begin(self, loop: Loop) -> None:
        self.loops.append(loop)
        self.bars.add(loop)

    def step(self, loop: Loop) -> None:
        self.bars.move(loop)

    def end(self, loop: Loop, whole: bool) -> None:
        self.loops.remove(loop)
        self.bars.take_away(loop)
        if whole and not self.loops and loop.seconds >= LONG:
            remark = f", {loop.remark}" if loop.remark else ""
            log.info("%s: done in %s%s", loop.description, clock(loop.seconds), remark)


class _Bars(Progress):
    """A head line, then every loop with its bar, how many steps are done and the time left, and its last remark."""

    def __init__(self, owner: Live, console: Console) -> None:
        self.owner = owner
        self.ids: dict[Loop, TaskID] = {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[left]}", style="progress.remaining"),
        )
        super().__init__(*columns, console=console, transient=True)

    def add(self, loop: Loop) -> None:
        self.ids[loop] = self.add_task(loop.description, total=loop.total, count="", left="")
        self.move(loop)

    def move(self, loop: Loop) -> None:
        count = f"{loop.done}/{loop.total}" if loop.total else str(loop.done or "")
        left = "" if loop.seconds_left is None else f"{clock(loop.seconds_left)} left"
        self.update(self.ids[loop], completed=loop.done, count=count, left=left)

    def take_away(self, loop: Loop) -> None:
        self.remove_task(self.ids.pop(loop))

    def get_renderables(self) -> Iterable[RenderableType]:
        """The lines of the display, from the top down."""
        yield Text(f"{self.owner.head} · {clock(time.monotonic() - self.owner.started)}", "bold", no_wrap=True)
        yield self.make_tasks_table(self.tasks)
        for loop in tuple(self.owner.loops):
            last = f"last {loop.remark}" if loop.remark else ""
            if said := " · ".join(filter(None, (loop.item, last))):
                yield Text(f"  {said}", "dim", no_wrap=True, overflow="ellipsis")
