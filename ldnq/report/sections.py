"""What the sections of a run's report show: numbers and charts by the names that the template uses."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ldnq.config import FLOAT
from ldnq.details import Details, LayerDetails, Outcomes
from ldnq.report import charts
from ldnq.report.confusion import Changes, Confusion
from ldnq.report.curves import accuracy_chart
from ldnq.report.record import Record

# Levels of which each has a mark of its own.
MARKS = 16


def of(record: Record) -> dict[str, Any]:
    """Everything; None for sections whose material the run has not left."""
    details = record.details
    layers = details.layers if details else ()
    return {
        "levels": levels(record),
        "trained": trained(record),
        "widths": record.metrics.get("top1_at"),
        "curves": accuracy_chart(record.curves) if record.curves else None,
        "error_chart": error_chart([record]),
        "largest_error": max(record.errors.values(), default=0.0),
        "weights": [(layer, _weights(layer)) for layer in layers],
        "codebook": max((_shown(layer) for layer in layers), key=len, default=[]),
        "iterations": _iterations(layers),
        "confusion": details and details.outcomes and Confusion.of(details.outcomes, details.class_names),
        "changes": details and details.outcomes and Changes.of(details.outcomes),
        "disagreements": list(_disagreements(details, details.outcomes)) if details and details.outcomes else [],
    }


def levels(record: Record) -> str:
    """How many levels a layer has, from the fewest to the most, in words."""
    numbers = sorted({int(row["kbits"]) for row in record.quantized})
    if not numbers:
        return "float"
    return f"{numbers[0]} to {numbers[-1]} levels" if len(numbers) > 1 else f"{numbers[0]} levels"


def trained(record: Record) -> str | None:
    """How a network came to be quantized that was trained so, in words."""
    metrics = record.metrics
    if "train_images" not in metrics:
        return None
    bits = [
        f"{what} of {metrics[name]} bits" if metrics[name] > 1 else f"{what} of one bit"
        for name, what in (("wbits", "weights"), ("abits", "activations"), ("gbits", "gradients"))
        if metrics[name] is not None and metrics[name] < FLOAT
    ]
    if metrics.get("bits"):
        bits = [f"{', '.join(map(str, metrics['bits']))} bits", f"supervision {metrics['supervision']}"]
    stepped = ", the quantized weights stepped" if metrics["update"] == "quantized" else ""
    return (
        f"{', '.join([metrics['method'], *bits])}{stepped}; {metrics['epochs']} epochs on "
        f"{metrics['train_images']:,} labelled images"
    )


def error_chart(records: Sequence[Record]) -> Markup | None:
    """The relative error of the layers of each run in order of execution, where there is any."""
    series = []
    for number, record in enumerate(records):
        dots = [
            (position, error, " ".join(filter(None, (record.label, f"{name}: {error:.4f}"))))
            for position, (name, error) in enumerate(record.errors.items(), 1)
            if error > 0
        ]
        if dots:
            series.append(charts.Series(record.label, [dot[:2] for dot in dots], *charts.style(number), dots))
    if not series:
        return None
    summary = "Relative reconstruction error by layer; the table below has the numbers."
    return charts.lines(series, "layer, in order of execution", "relative error", summary, log_y=True)


def _weights(layer: LayerDetails) -> Markup:
    shares = ", ".join(f"{share:.0%} at {level:g}α" for level, share in zip(layer.levels, layer.shares))
    put_on = f"the levels that they were put on: {shares}" if len(layer.levels) <= MARKS else "the outermost levels"
    summary = f"Histogram of the float weights of {layer.name}, and {put_on}."
    return charts.histogram(layer.histogram.tolist(), layer.reach, _shown(layer), summary)


def _shown(layer: LayerDetails) -> list[float]:
    """The levels that a chart has marks for: the outermost of very many."""
    levels = layer.levels.tolist()
    return levels if len(levels) <= MARKS else [levels[0], levels[-1]]


def _iterations(layers: Sequence[LayerDetails]) -> Markup | None:
    """Error by iteration as a share of the first one, a line a layer, from blue at the input to red at the output."""
    series = []
    for position, layer in enumerate(layers):
        points = [(n, error / layer.errors[0]) for n, error in enumerate(layer.errors.tolist()) if error > 0]
        if len(points) > 1:
            hue = 220 + 140 * position / max(1, len(layers) - 1)
            label = f"{layer.name}: {points[-1][1]:.3g} of the first error after {len(points) - 1} iterations"
            series.append(charts.Series(label, points, f"hsl({hue:.0f} 75% 55%)"))
    if not series:
        return None
    summary = f"Reconstruction error of {len(series)} layers by iteration of the solver, as a share of the first."
    return charts.lines(series, "iteration of the solver", "error, of the first", summary, log_y=True)


def _disagreements(details: Details, outcomes: Outcomes) -> Iterator[Mapping[str, Any]]:
    """The pictures with what both networks say of them."""
    names = details.class_names
    for index, picture in details.pictures.items():
        yield {
            "index": index,
            "source": "data:image/jpeg;base64," + base64.b64encode(picture).decode(),
            "label": names[outcomes.labels[index]],
            "teacher": names[outcomes.teacher[index]],
            "teacher_confidence": float(outcomes.teacher_confidence[index]),
            "student": names[outcomes.student[index]],
            "student_confidence": float(outcomes.student_confidence[index]),
        }
