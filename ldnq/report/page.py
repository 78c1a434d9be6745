"""The pages: what a run's folder holds, put into the templates."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import ldnq
from ldnq.errors import UsageError
from ldnq.files import write_text
from ldnq.report import comparison, sections, text
from ldnq.report.record import Record

FILTERS = (text.plain, text.decibels, text.signed, text.duration, text.level, text.level_colours)


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Write the report of the finished run in `folder` to `path`, or to its `report.html`; returns where."""
    record = Record.read(folder)
    path = path or folder / "report.html"
    write_text(path, _render("run.html", record=record, **sections.of(record)))
    return path


def write_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Write the report of several finished runs side by side to `path`; returns it."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("expected different runs to compare, got one twice")
    records = comparison.labelled([Record.read(folder) for folder in folders])
    write_text(path, _render("comparison.html", records=records, **comparison.of(records)))
    return path


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(version=ldnq.__version__, **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ldnq.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {function.__name__: function for function in FILTERS}
    return environment
