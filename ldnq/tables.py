"""What several runs come to: a row for each, and mean and spread over those that differ by their draw alone."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ldnq.extras import require
from ldnq.files import replacing, write_text

COLUMNS = (
    "model", "dataset", "preset", "kbits", "scale", "seed", "teacher_top1", "quantized_top1", "top1_drop",
    "packed_bytes", "float_bytes", "bits_per_weight", "seconds",
)  # fmt: skip
HEADER = ("network", "levels", "draws", "float top-1", "top-1", "drop", "bytes", "smaller", "bits a weight")


@dataclass(frozen=True)
class Summary:
    """Runs of one network with one number of levels: top-1 accuracies in percent, and the mean size of their files."""

    model: str
    kbits: int
    teacher: float | None
    top1: tuple[float, ...]
    bytes: float
    float_bytes: int
    bits_per_weight: float
    draws: int

    @classmethod
    def of(cls, runs: Sequence[Mapping[str, Any]]) -> "Summary":
        """What `runs`, their metrics, have in common."""
        first = runs[0]
        return cls(
            first["model"],
            first["kbits"],
            first["teacher_top1"],
            tuple(run["quantized_top1"] for run in runs if run["quantized_top1"] is not None),
            statistics.mean(run["packed_bytes"] for run in runs),
            first["float_bytes"],
            statistics.mean(run["bits_per_weight"] for run in runs),
            len(runs),
        )

    def row(self) -> tuple[str, ...]:
        """As words, one for each of `HEADER`."""
        drops = [self.teacher - top1 for top1 in self.top1] if self.teacher is not None else []
        return (
            self.model,
            str(self.kbits),
            str(self.draws),
            "" if self.teacher is None else f"{self.teacher:.2f}",
            spread(self.top1),
            spread(drops),
            f"{self.bytes:,.0f}",
            f"{self.float_bytes / self.bytes:.1f}x",
            f"{self.bits_per_weight:.2f}",
        )


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, standard deviation; nothing of none."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def write_tables(folder: Path, runs: Iterable[Mapping[str, Any]]) -> list[Summary]:
    """Write `sweep.csv`, a row for each of `runs`, and `sweep.md`, a row for those that differ by their seed alone."""
    runs = list(runs)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(runs)
    write_text(folder / "sweep.csv", text.getvalue())
    summaries = [Summary.of(list(group)) for _, group in groupby(runs, lambda run: (run["model"], run["kbits"]))]
    lines = [HEADER, ("---",) * len(HEADER), *(summary.row() for summary in summaries)]
    write_text(folder / "sweep.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return summaries


def plot(path: Path, summaries: Sequence[Summary]) -> None:
    """Write accuracy against size, a line for each network and a point for each number of levels, as SVG.

    Raises `UsageError` where matplotlib is not installed.
    """
    figure = require("matplotlib.figure", "plots").Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="size in kB", ylabel="top-1 in percent", xscale="log")
    shown = [entry for entry in summaries if entry.top1]
    if shown:
        # Of a single size matplotlib would make an axis of no width.
        axes.set_xlim(min(entry.bytes for entry in shown) / 1250, max(entry.bytes for entry in shown) / 800)
    for model, group in groupby(shown, lambda entry: entry.model):
        line = list(group)
        sizes, means = [entry.bytes / 1000 for entry in line], [statistics.mean(entry.top1) for entry in line]
        errors = [statistics.stdev(entry.top1) if len(entry.top1) > 1 else 0.0 for entry in line]
        drawn = axes.errorbar(sizes, means, errors, marker="o", capsize=3, label=model)
        axes.axhline(line[0].teacher, color=drawn[0].get_color(), linestyle=":", linewidth=1)
        for size, mean, entry in zip(sizes, means, line):
            axes.annotate(str(entry.kbits), (size, mean), xytext=(5, -10), textcoords="offset points")
    # Sizes span too little for powers of ten.
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("{x:,.0f}")
    axes.set_title("Accuracy and size by number of levels (dotted: float)")
    if axes.containers:
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg")
