"""Accuracy by epoch of a training, for a page and as a file of its own."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from ldnq.files import write_text
from ldnq.report import charts

# Columns of `training.csv` and what they are called.
ACCURACIES = {"top1": "training", "held_out_top1": "held out", "test_top1": "test"}
# Of the style sheet, what colours and charts need.
CHART_RULES = (":root", "  ", "@media (prefers", "}", "svg")


def accuracy_chart(rows: Sequence[Mapping[str, float]]) -> Markup:
    """Top-1 on training, held-out and test images by epoch, of the `rows` of `training.csv`, with its legend."""
    series = []
    for number, (column, label) in enumerate(ACCURACIES.items()):
        points = [(row["epoch"], row[column]) for row in rows if column in row]
        if points:
            # A line of one point is none.
            dots = [(*point, f"{label}: {point[1]:.2f}%") for point in (points if len(points) == 1 else points[-1:])]
            series.append(charts.Series(label, points, *charts.style(number), dots))
    ends = ", ".join(f"{entry.label} {entry.points[-1][1]:.2f}%" for entry in series)
    summary = f"Top-1 by epoch over {len(rows)} epochs; at the end {ends}."
    return charts.lines(series, "epoch", "top-1, %", summary, legend=True)


def write_chart(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the chart of `rows` to `path` as SVG that brings its colours, light and dark, along."""
    sheet = files("ldnq.report").joinpath("templates/style.css").read_text(encoding="utf-8").splitlines()
    style = "\n".join(line for line in sheet if line.startswith(CHART_RULES))
    style += "\nsvg { background: var(--paper); }"
    opening = '<svg xmlns="http://www.w3.org/2000/svg"'
    text = accuracy_chart(rows).replace("<svg", opening, 1).replace(">", f"><style>\n{style}\n</style>", 1)
    write_text(path, text + "\n")
