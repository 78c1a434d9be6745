"""What commands print with: results on standard output, progress and remarks on standard error."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from ldnq import ranks

if TYPE_CHECKING:
    from rich.console import Console


class _Remarks(logging.Handler):
    """Log records as plain lines, above the progress bars where there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        errors().print(prefix + record.getMessage(), markup=False, highlight=False, soft_wrap=True)


def configure(verbose: bool, quiet: bool) -> None:
    """Decide what the log of ldnq shows: warnings with `quiet`, everything with `verbose`."""
    log = logging.getLogger("ldnq")
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    log.setLevel(logging.CRITICAL if ranks.number() else level)
    log.handlers = [_Remarks()]


@cache
def errors() -> "Console":
    """The rich console on standard error."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def progress() -> Iterator[None]:
    """Show progress bars within the block, if standard error is a terminal and remarks are wanted."""
    from ldnq.progress import display

    if logging.getLogger("ldnq").isEnabledFor(logging.INFO):
        with display(errors()):
            yield
    else:
        yield


def table(rows: list[tuple], columns: tuple[str, ...] = (), title: str | None = None) -> None:
    """Print rows on standard output; numbers come formatted and stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, box=box.SIMPLE_HEAD if columns else None, show_header=bool(columns), title_justify="left")
    for position in range(len(rows[0]) if rows else len(columns)):
        header = columns[position] if columns else ""
        numeric = bool(rows) and all(_is_number(row[position]) for row in rows)
        grid.add_column(header, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*map(str, row))
    console = Console()
    # Piped output keeps whole lines: whoever greps it needs them.
    Console(width=None if console.is_terminal else 200).print(grid)


def _is_number(text: object) -> bool:
    return str(text).strip("-+.,%0123456789e ") == ""
