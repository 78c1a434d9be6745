"""What the report of several runs shows side by side."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from markupsafe import Markup

from ldnq.report import charts, text
from ldnq.report.record import Record
from ldnq.report.sections import error_chart

# What names a run, the most telling first; then whatever else differs.
TELLING = (
    "model", "dataset", "method", "preset", "kbits", "wbits", "abits", "bits", "scale", "solver", "epochs", "samples",
    "ratio", "seed",
)  # fmt: skip
# Where things lay and what machine did it: no choice of method.
ELSEWHERE = {
    "data_root", "download", "pretrained_dir", "resample", "calibration", "device", "batch_size", "workers", "threads",
}  # fmt: skip
# What may differ between the runs that one line goes through.
WITHIN = {"kbits", "seed"}


def labelled(records: Sequence[Record], ignored: Collection[str] = ()) -> list[Record]:
    """The same with labels made of the fewest settings that tell the runs apart, none of those `ignored`, or of their
    folders too."""
    others = [name for name in differing(records) if name not in TELLING]
    labels, apart = [""] * len(records), 1
    for name in (*TELLING, *others):
        longer = [", ".join(filter(None, (label, _short(name, record)))) for label, record in zip(labels, records)]
        if name not in {*ELSEWHERE, *ignored} and len(set(longer)) > apart:
            labels, apart = longer, len(set(longer))
    if apart < len(records):
        labels = [", ".join(filter(None, (label, str(record.path)))) for label, record in zip(labels, records)]
    return [replace(record, label=label) for label, record in zip(labels, records)]


def differing(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The settings that are not the same everywhere, run by run."""
    names = dict.fromkeys(name for record in records for name in record.settings)
    table = {name: [record.settings.get(name) for record in records] for name in names}
    return {name: values for name, values in table.items() if any(value != values[0] for value in values)}


def of(records: Sequence[Record]) -> dict[str, Any]:
    """Numbers and charts by the names that the template uses."""
    names = dict.fromkeys(name for record in records for name in record.errors)
    return {
        "accuracy": _accuracy(records),
        "differing": differing(records),
        "error_chart": error_chart(records),
        "lines": [(*charts.style(number), record.label) for number, record in enumerate(records)],
        "errors": {name: [record.errors.get(name) for record in records] for name in names},
    }


def _short(name: str, record: Record) -> str:
    value, words = record.settings.get(name), name.replace("_", " ")
    if value is None:
        return ""
    if isinstance(value, bool):
        return words if value else f"no {words}"
    if name in ("model", "dataset", "method", "preset"):
        return str(value)
    return f"{text.plain(value)} levels" if name == "kbits" else f"{words} {text.plain(value)}"


def _accuracy(records: Sequence[Record]) -> dict[str, Any] | None:
    """Accuracy against levels and against size, a line through the runs that differ in nothing but levels and seed."""
    measured = [record for record in records if record.metrics.get("quantized_top1") is not None]
    if not measured:
        return None
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in measured:
        groups[_family(record)].append(record)
    teachers = {record.metrics["teacher_top1"] for record in measured} - {None}
    rule = (teachers.pop(), "float") if len(teachers) == 1 else None
    found: dict[str, Any] = {"legend": _legend(groups), "levels": None}
    levels = [record.metrics["kbits"] for record in measured]
    if all(isinstance(level, int) for level in levels) and len(set(levels)) > 1:
        found["levels"] = _chart(groups, lambda record: record.metrics["kbits"], "levels", rule, sorted(set(levels)))
    found["size"] = _chart(groups, lambda record: record.metrics["packed_bytes"] / 1000, "kB", rule)
    return found


def _family(record: Record) -> str:
    return repr({name: value for name, value in record.settings.items() if name not in WITHIN | ELSEWHERE})


def _legend(groups: Mapping[str, Sequence[Record]]) -> list[tuple[str, str, str]]:
    """Colour, dashes and label of each line: the settings that tell the lines apart."""
    first = labelled([group[0] for group in groups.values()], WITHIN)
    return [(*charts.style(number), record.label) for number, record in enumerate(first)]


def _chart(
    groups: Mapping[str, Sequence[Record]],
    across: Callable[[Record], float],
    x_label: str,
    rule: tuple[float, str] | None,
    ticks: Sequence[int] = (),
) -> Markup:
    series = []
    for number, group in enumerate(groups.values()):
        by_levels: dict[str, list[tuple[float, float]]] = defaultdict(list)
        dots = []
        for record in group:
            x, y = across(record), record.metrics["quantized_top1"]
            by_levels[str(record.metrics["kbits"])].append((x, y))
            dots.append((x, y, f"{record.label}: {y:.2f}%, {text.number(x)} {x_label}"))
        means = sorted((fmean(x for x, _ in places), fmean(y for _, y in places)) for places in by_levels.values())
        series.append(charts.Series(group[0].label, means, *charts.style(number), dots))
    summary = f"Top-1 accuracy of the runs against {x_label}; the table above has the numbers."
    return charts.lines(series, x_label, "top-1, %", summary, x_ticks=ticks, rule=rule)
