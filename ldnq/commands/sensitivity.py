"""`ldnq sensitivity`."""

from pathlib import Path
from typing import Any

import click

from ldnq.commands import console, options
from ldnq.config import KBITS, RunConfig


class Levels(click.ParamType):
    """Comma-separated numbers of levels, each once, in ascending order."""

    name = "K,K,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """A tuple of numbers that are known."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",")]
        if unknown := [word for word in words if word not in map(str, KBITS)]:
            self.fail(f"expected some of {','.join(map(str, KBITS))}, got {unknown[0]!r}", param, ctx)
        return tuple(sorted(set(map(int, words))))


@click.command("sensitivity", short_help="Measure how much each layer minds few levels.")
@options.network_options
@options.data_options
@options.calibration_options
@options.calibration_file_option
@options.synthesis_options
@click.option("--preset", default="fast", show_default=True, help="Whose solver and targets; see 'ldnq list presets'.")
@click.option("--kbits", type=Levels(), default=KBITS, help="Numbers of levels to try. [default: 3,5,7,9,11]")
@options.layer_options
@options.runtime_options
@options.memory_option
@options.output_option
def sensitivity_command(kbits: tuple[int, ...], output: Path | None, **values: Any) -> None:
    """Quantize one layer at a time, at each number of levels, and measure what that does to the network's outputs.

    Needs the calibration images alone. Writes a table, sensitivity.csv, and a plot, sensitivity.svg; 'ldnq quantize
    --kbits auto' chooses the levels of each layer by the same measurement.

    \b
    ldnq sensitivity --model resnet20 --dataset digits --kbits 3,5
    """
    options.require_model(values["model"])
    options.settle_calibration(values)
    config = RunConfig.from_options(values)
    from ldnq.survey import survey

    with console.progress():
        result = survey(config, kbits, output)
    measures = [name for name in ("agreement", "top1") if getattr(result.found[0], name) is not None]
    console.table(
        _rows(result.found, len(kbits), measures),
        ("layer", "weights", *map(str, kbits), *(f"{name} at {kbits[0]}" for name in measures)),
        "Divergence of the network's outputs by levels of one layer, nats an image",
    )
    console.table(_summary(result.metrics) + [("files", str(result.folder))])


def _rows(found: list, count: int, measures: list[str]) -> list[tuple]:
    rows = []
    for first in range(0, len(found), count):
        trials = found[first : first + count]
        divergences = (f"{trial.divergence:.1e}" for trial in trials)
        percents = (f"{getattr(trials[0], name):.1f}%" for name in measures)
        rows.append((trials[0].layer.name, f"{trials[0].weights:,}", *divergences, *percents))
    return rows


def _summary(metrics: dict) -> list[tuple[str, str]]:
    rows = [("calibration images", f"{metrics['calibration_samples'] + metrics['synthesized_samples']:,}")]
    if metrics["teacher_top1"] is not None:
        rows.append(("float top-1 on them", f"{metrics['teacher_top1']:.2f}%"))
    rows.append(("time", f"{metrics['seconds']:.1f} s"))
    return rows
