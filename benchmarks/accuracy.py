"""Accuracy of every preset, beside the figures of the L-DNQ paper.

    pip install ".[benchmarks]"
    python benchmarks/accuracy.py --data-root cifar10=DIR --data-root imagenette=DIR

runs what `accuracy.json` does not hold yet and rewrites `accuracy.md`, `paper.md` and `paper.svg` from it. It can be
stopped at any time and goes on where it was.
"""

import statistics
from pathlib import Path

import click
import matplotlib
from matplotlib import pyplot
from rows import Configuration, Rows, spread

from ldnq.config import KBITS, PRECISIONS, SCALES
from ldnq.files import write_text

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
PRESETS = ("paper", "fast", "balanced", "best")
DATA_NAMES = {"cifar10": "CIFAR-10 (JPEG copy)", "imagenette": "Imagenette, 128 pixels"}
# Top-1 drop in points that the authors printed at three levels, in their paper and in their talk.
PUBLISHED = {"resnet20": "5.55 / 4.30", "resnet32": "3.66", "resnet56": "3.49"}
CONFIGURATIONS = [
    *(Configuration("resnet20", "cifar10", k, s, p) for p in PRESETS for s in SCALES for k in KBITS),
    *(
        Configuration(model, "cifar10", 3, scale, preset)
        for preset in ("paper", "balanced", "best")
        for model in ("resnet32", "resnet56")
        for scale in SCALES
    ),
    *(
        Configuration("resnet18", "imagenette", kbits, scale, preset, 128)
        for preset in ("paper", "fast", "balanced")
        for scale in SCALES
        for kbits in (3, 5, 9)
    ),
]


@click.command()
@click.option("--data-root", "roots", multiple=True, metavar="DATASET=DIR", help="Where a dataset lies. Repeatable.")
@click.option("--model", help="Run the rows of this network alone.")
@click.option("--preset", type=click.Choice(PRESETS), help="Run the rows of this preset alone.")
@click.option("--scale", type=click.Choice(SCALES), help="Run the rows with this sharing of scales alone.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True, help="Of the runs.")
@click.option("--seeds", type=click.IntRange(0, len(SEEDS)), default=len(SEEDS), help="Run the first so many; 0: none.")
def main(
    roots: tuple[str, ...], model: str | None, preset: str | None, scale: str | None, precision: str, seeds: int
) -> None:
    """Complete the rows, then write the tables and the plot."""
    if not all("=" in root for root in roots):
        raise click.UsageError(f"expected --data-root DATASET=DIR, got {' '.join(roots)}")
    rows = Rows(HERE / "accuracy.json")
    wanted = [c for c in CONFIGURATIONS if model in (None, c.model) and preset in (None, c.preset)]
    wanted = [c for c in wanted if scale in (None, c.scale)]
    rows.complete(wanted, SEEDS[:seeds], dict(root.split("=", 1) for root in roots), precision)
    write_text(HERE / "accuracy.md", accuracy_table(rows))
    write_text(HERE / "paper.md", paper_table(rows))
    plot(rows, HERE / "paper.svg")


def paper_table(rows: Rows) -> str:
    """L-DNQ as published beside the published figures, as Markdown."""
    lines = [
        "| network | data | levels | float top-1 | quantized top-1 | drop | paper's drop | bits a weight | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in CONFIGURATIONS:
        group = rows.of(c)
        if not group or (c.preset, c.scale) != ("paper", "layer"):
            continue
        published = PUBLISHED.get(c.model, "") if c.kbits == 3 else ""
        lines.append(
            f"| {c.model} | {DATA_NAMES[c.dataset]} | {c.kbits} | {group[0]['teacher_top1']:.2f} "
            f"| {spread(group, 'quantized_top1')} | {spread(group, 'top1_drop')} | {published} "
            f"| {group[0]['bits_per_weight']:.2f} | {len(group)} |"
        )
    return "\n".join(lines) + "\n"


def accuracy_table(rows: Rows) -> str:
    """Drop in top-1 of every preset, as Markdown."""
    lines = [
        "| network | data | levels | scale | preset | float top-1 | quantized top-1 | drop | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in CONFIGURATIONS:
        if group := rows.of(c):
            lines.append(
                f"| {c.model} | {DATA_NAMES[c.dataset]} | {c.kbits} | {c.scale} | {c.preset} "
                f"| {group[0]['teacher_top1']:.2f} | {spread(group, 'quantized_top1')} | {spread(group, 'top1_drop')} "
                f"| {len(group)} |"
            )
    return "\n".join(lines) + "\n"


def plot(rows: Rows, path: Path) -> None:
    """Top-1 of resnet20 against the number of levels by the paper's preset, each seed a dot."""
    matplotlib.rcParams["svg.hashsalt"] = "ldnq"
    groups = {k: rows.of(Configuration("resnet20", "cifar10", k)) for k in KBITS}
    groups = {k: group for k, group in groups.items() if group}
    if not groups:
        return
    found = [row for group in groups.values() for row in group]
    means = [statistics.mean(row["quantized_top1"] for row in group) for group in groups.values()]
    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    axes.axhline(found[0]["teacher_top1"], color="0.4", linestyle="--", label="float network")
    axes.plot(list(groups), means, color="tab:blue", label="quantized, mean")
    axes.scatter(
        [row["kbits"] for row in found],
        [row["quantized_top1"] for row in found],
        s=16,
        color="tab:orange",
        zorder=3,
        label="one seed",
    )
    axes.set_xticks(list(groups))
    axes.set_xlabel("levels of the codebook")
    axes.set_ylabel("top-1 on the test set, %")
    axes.set_title("ResNet-20, CIFAR-10 (JPEG copy), 500 images, every layer quantized", fontsize=9)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
