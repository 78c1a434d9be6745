"""Accuracy of every preset, beside the figures of the L-DNQ paper.

    pip install ".[benchmarks]"
    python benchmarks/accuracy.py --data-root cifar10=DIR --data-root imagenette=DIR

runs what `accuracy.json` does not hold yet and rewrites `accuracy.md`, `highlights.md` and the plots of docs/figures,
`levels.svg` and `images.svg`, from it. It can be stopped at any time and goes on where it was.
"""

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import matplotlib
from matplotlib import pyplot
from rows import FEW, FIGURES, SAMPLES, Configuration, Rows, publish, quick_option, spread

from ldnq.config import KBITS, PRECISIONS, SCALES

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
PRESETS = ("paper", "fast", "balanced", "best")
DATA_NAMES = {"digits": "digits", "cifar10": "CIFAR-10 (JPEG copy)", "imagenette": "Imagenette, 128 pixels"}
# Top-1 drop in points that the authors printed at three levels, in their paper and in their talk.
PUBLISHED = {"resnet20": "5.55 / 4.30", "resnet32": "3.66", "resnet56": "3.49"}
SIZES = (100, 200, 500, 1000, 2000, 5000)
BY_SIZE = {
    preset: [Configuration("resnet20", "cifar10", 3, "layer", preset, calibration_samples=size) for size in SIZES]
    for preset in ("paper", "fast", "balanced")
}
BY_LEVELS = {
    preset: [Configuration("resnet20", "cifar10", kbits, "layer", preset) for kbits in KBITS] for preset in PRESETS
}
CONFIGURATIONS = [
    *(Configuration("resnet20", "cifar10", k, s, p) for p in PRESETS for s in SCALES for k in KBITS),
    *(
        Configuration(model, "cifar10", 3, scale, preset)
        for preset in PRESETS
        for model in ("resnet32", "resnet56")
        for scale in SCALES
    ),
    *(
        Configuration("resnet18", "imagenette", kbits, scale, preset, 128)
        for preset in ("paper", "fast", "balanced")
        for scale in SCALES
        for kbits in (3, 5, 9)
    ),
    *(
        Configuration("mobilenet_v2", "cifar10", kbits, scale, preset)
        for preset in ("paper", "fast", "balanced")
        for scale in SCALES
        for kbits in (5, 7)
    ),
    # Those of 500 images are there already.
    *(c for line in BY_SIZE.values() for c in line if c.calibration_samples != SAMPLES),
    *(
        Configuration("resnet20", "cifar10", kbits, "layer", "balanced", calibration_samples=0, synthesized_samples=512)
        for kbits in (3, 5)
    ),
]
QUICK = [Configuration("resnet20", "digits", 3, "layer", p, calibration_samples=FEW) for p in ("paper", "fast")]
# What the README shows of them.
HIGHLIGHTS = [
    Configuration("resnet20", "cifar10", 3),
    Configuration("resnet20", "cifar10", 5),
    Configuration("resnet32", "cifar10", 3),
    Configuration("resnet56", "cifar10", 3),
    Configuration("resnet18", "imagenette", 3, image_size=128),
    Configuration("mobilenet_v2", "cifar10", 5),
]


@click.command()
@quick_option
@click.option("--data-root", "roots", multiple=True, metavar="DATASET=DIR", help="Where a dataset lies. Repeatable.")
@click.option("--model", help="Run the rows of this network alone.")
@click.option("--preset", type=click.Choice(PRESETS), help="Run the rows of this preset alone.")
@click.option("--scale", type=click.Choice(SCALES), help="Run the rows with this sharing of scales alone.")
@click.option("--kbits", type=click.Choice(KBITS), help="Run the rows with so many levels alone.")
@click.option("--samples", "calibration_samples", type=int, help="Run the rows with so many calibration images alone.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True, help="Of the runs.")
@click.option("--seeds", type=click.IntRange(0, len(SEEDS)), default=len(SEEDS), help="Run the first so many; 0: none.")
def main(quick: bool, roots: tuple[str, ...], precision: str, seeds: int, **chosen: Any) -> None:
    """Complete the rows, then write the tables and the plot."""
    if not all("=" in root for root in roots):
        raise click.UsageError(f"expected --data-root DATASET=DIR, got {' '.join(roots)}")
    rows = Rows(HERE / "accuracy.json")
    if quick:
        rows.complete(QUICK, SEEDS[:1], {"digits": None}, precision)
        publish("accuracy.md", table(rows, QUICK))
        return
    wanted = [
        configuration
        for configuration in CONFIGURATIONS
        if all(value in (None, getattr(configuration, name)) for name, value in chosen.items())
    ]
    rows.complete(wanted, SEEDS[:seeds], dict(root.split("=", 1) for root in roots), precision)
    publish("accuracy.md", table(rows, CONFIGURATIONS))
    publish("highlights.md", table(rows, HIGHLIGHTS))
    matplotlib.rcParams["svg.hashsalt"] = "ldnq"
    plot(rows, BY_LEVELS, "kbits", "levels of the codebook", "500 images", FIGURES / "levels.svg")
    plot(rows, BY_SIZE, "calibration_samples", "calibration images", "3 levels", FIGURES / "images.svg")


def table(rows: Rows, shown: list[Configuration]) -> str:
    """Drop in top-1 by every preset beside what the authors printed, as Markdown; a row for each of `shown`, whatever
    its preset."""
    lines = [
        f"| network | data | images | levels | scale | float top-1 | published | {' | '.join(PRESETS)} |",
        f"|---|---|---|---|---|---|---|{'---|' * len(PRESETS)}",
    ]
    for tested in dict.fromkeys(replace(c, preset="") for c in shown):
        groups = {preset: rows.of(replace(tested, preset=preset)) for preset in PRESETS}
        found = [row for group in groups.values() for row in group]
        if not found:
            continue
        as_published = tested.kbits == 3 and tested.scale == "layer" and tested.calibration_samples == SAMPLES
        printed = PUBLISHED.get(tested.model, "") if as_published else ""
        lines.append(
            f"| {tested.model} | {DATA_NAMES[tested.dataset]} | {_images(tested)} | {tested.kbits} "
            f"| {tested.scale} | {max(row['teacher_top1'] for row in found):.2f} | {printed} "
            f"| {' | '.join(_drop(group) for group in groups.values())} |"
        )
    return "\n".join(lines) + "\n"


def _images(tested: Configuration) -> str:
    if not tested.synthesized_samples:
        return f"{tested.calibration_samples:,}"
    return f"{tested.calibration_samples:,}, and {tested.synthesized_samples:,} synthesized"


def _drop(group: list[dict]) -> str:
    draws = {0: "", 1: " (one draw)", 2: " (two draws)"}.get(len(group), "")
    return spread(group, "top1_drop") + draws


def plot(
    rows: Rows, lines: Mapping[str, list[Configuration]], variable: str, label: str, what: str, path: Path
) -> None:
    """Top-1 of resnet20 against `variable`, a line for each preset and a dot for each seed."""
    drawn = {preset: [group for c in line if (group := rows.of(c))] for preset, line in lines.items()}
    drawn = {preset: groups for preset, groups in drawn.items() if len(groups) > 1}
    if not drawn:
        return
    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for preset, groups in drawn.items():
        means = [statistics.mean(row["quantized_top1"] for row in group) for group in groups]
        (line,) = axes.plot([group[0][variable] for group in groups], means, label=preset)
        found = [row for group in groups for row in group]
        axes.scatter(
            [row[variable] for row in found], [row["quantized_top1"] for row in found], s=10, color=line.get_color()
        )
    teacher = max(row["teacher_top1"] for groups in drawn.values() for group in groups for row in group)
    axes.axhline(teacher, color="0.4", linestyle="--", label="float network")
    if variable == "calibration_samples":
        axes.set_xscale("log")
    ticks = [getattr(c, variable) for c in next(iter(lines.values()))]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel("top-1 on the test set, %")
    axes.set_title(f"ResNet-20, CIFAR-10 (JPEG copy), {what}, one scale a layer, every layer quantized", fontsize=8)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
