"""Accuracy by epoch of a training, for a page and as a file of its own."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from ldnq.files import write_text
from ldnq.report import charts
from ldnq.report.axis import Axis

# Columns of `training.csv` and what they are called.
ACCURACIES = {"top1": "training", "held_out_top1": "held out", "test_top1": "test"}


def accuracy_chart(rows: Sequence[Mapping[str, float]]) -> Markup:
    """Top-1 on training, held-out and test images by epoch, of the `rows` of `training.csv`, with its legend."""
    series = []
    for number, (column, label) in enumerate(ACCURACIES.items()):
        points = [(row["epoch"], row[column]) for row in rows if column in row]
        if points:
            # The end has a dot: a line of one point would not be seen.
            dots = [(*points[-1], f"{label}: {points[-1][1]:.2f}%")]
            series.append(charts.Series(label, points, *charts.style(number), dots))
    ends = ", ".join(f"{entry.label} {entry.points[-1][1]:.2f}%" for entry in series)
    summary = f"Top-1 by epoch over {len(rows)} epochs; at the end {ends}."
    return charts.lines(series, "epoch", "top-1, %", summary, x_ticks=_ticks(len(rows)), legend=True)


def _ticks(epochs: int) -> list[float]:
    """Round numbers of epochs, all there are of a handful."""
    return [tick for tick in Axis.over([0, epochs]).ticks() if 1 <= tick <= epochs and tick.is_integer()]


def write_chart(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the chart of `rows` to `path` as SVG that brings its colours, light and dark, along."""
    style = files("ldnq.report").joinpath("templates/chart.css").read_text(encoding="utf-8")
    style += "svg { max-width: 48rem; background: var(--paper); }\n"
    opening, rest = str(accuracy_chart(rows)).removeprefix("<svg").split(">", 1)
    text = f'<svg xmlns="http://www.w3.org/2000/svg"{opening}><style>\n{style}</style>{rest}'
    write_text(path, text + "\n")
