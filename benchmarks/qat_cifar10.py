"""Networks trained with few bits on CIFAR-10, beside what the repositories of DoReFa-Net and XNOR-Net networks print.

    pip install ".[benchmarks]"
    python benchmarks/qat_cifar10.py --data-root DIR --rows nin,nin-a4w4 --epochs 100

trains the rows named, all without `--rows`, each from random weights, unless `qat_cifar10.json` holds them with so many
epochs; then rewrites `qat_cifar10.md` and the plots `qat-nin.svg` and `qat-resnet20.svg` of docs/figures. A run that
was stopped goes on where it was while its folder in `results/` is there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import matplotlib
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator
from rows import FIGURES, Kept, data_of, data_root_option, publish, quick_option, results

from ldnq import api, curves
from ldnq.checkpoints import read
from ldnq.config import DataConfig
from ldnq.report.record import Record

HERE = Path(__file__).parent
EPOCHS = 100


@dataclass(frozen=True)
class Row:
    """A network trained by `options` of `ldnq qat`, of `ldnq train` without a method; its float `baseline` is another
    row, and `printed` what the repository prints as its best top-1."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    printed: float | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)


def dorefa(bits: int, **more: Any) -> dict[str, Any]:
    """Options of DoReFa-Net with as many bits of weights as of activations."""
    return {"method": "dorefa", "wbits": bits, "abits": bits, "lr": 0.1} | more


XNOR = {"method": "xnor", "optimizer": "adam", "lr": 0.01, "weight_decay": 0.0}
WIDE = {"width": 32}
ROWS = {
    "nin": Row("nin", {"lr": 0.1}, None, 92.37),
    "nin-a1w1": Row("nin", dorefa(1), "nin", 67.37),
    "nin-a2w2": Row("nin", dorefa(2), "nin", 81.22),
    "nin-a4w4": Row("nin", dorefa(4), "nin", 90.45),
    "nin-a4w4-quantized": Row("nin", dorefa(4, update="quantized"), "nin", 73.84),
    "nin-a8w8": Row("nin", dorefa(8), "nin", 91.09),
    "nin-a16w16": Row("nin", dorefa(16), "nin", 91.04),
    "nin-xnor": Row("nin", XNOR, "nin", 82.75),
    "nin-gc": Row("nin-gc", {"lr": 0.1}, None, 92.72),
    "nin-gc-xnor": Row("nin-gc", XNOR, "nin-gc", 75.62),
    "resnet20": Row("resnet20", {"lr": 0.1}, None, None, WIDE),
    "resnet20-a4w4": Row("resnet20", dorefa(4), "resnet20", 91.38, WIDE),
    "resnet20-a8w8": Row("resnet20", dorefa(8), "resnet20", 91.72, WIDE),
    "resnet20-a16w16": Row("resnet20", dorefa(16), "resnet20", 92.09, WIDE),
}
# What the repository compares with, where it prints no float network.
REFERENCE = {"resnet20": 92.09}


@click.command()
@quick_option
@data_root_option("Where CIFAR-10 lies.")
@click.option("--rows", default=",".join(ROWS), help="Names of rows to train; none: write the tables alone.")
@click.option("--epochs", default=EPOCHS, show_default=True)
@click.option("--threads", default=0, help="Of the processor; 0: torch's choice.")
def main(quick: bool, data_root: str | None, rows: str, epochs: int, threads: int) -> None:
    """Train what is not there yet, then write the table and the plots."""
    kept = Kept(HERE / "qat_cifar10.json")
    data = data_of("cifar10", data_root)
    if quick:
        rows, epochs = "resnet20,resnet20-a4w4", 1
    for name in filter(None, rows.split(",")):
        if name not in ROWS:
            raise click.UsageError(f"unknown row {name!r}: expected {', '.join(ROWS)}")
        if kept.of(name, epochs) is None:
            row = replace(ROWS[name], model_args={}) if quick else ROWS[name]
            kept.add({"row": name, "epochs": epochs} | train(row, name, epochs, data, threads))
    publish("qat_cifar10.md", table(kept))
    if quick:
        return
    matplotlib.rcParams["svg.hashsalt"] = "ldnq"
    for model in ("nin", "resnet20"):
        plot(kept, model, FIGURES / f"qat-{model}.svg")


def train(row: Row, name: str, epochs: int, data: DataConfig, threads: int) -> dict[str, Any]:
    """Final accuracy, and accuracies by epoch."""
    folder = results() / f"qat-{name}-{epochs}"
    options = {
        "dataset": data.dataset, "data_root": data.data_root, "epochs": epochs, "test_every": 1, "threads": threads,
        "model_args": dict(row.model_args), "output": folder, **row.options,
    }  # fmt: skip
    if "method" not in options:
        weights = next(folder.glob("*.safetensors"), None)
        card = read(weights)[1] if weights else api.train(row.model, **options)[1]
        top1 = card["top1"]
    elif (folder / "metrics.json").exists():
        top1 = Record.read(folder).metrics["quantized_top1"]
    else:
        top1 = api.qat(row.model, init="scratch", **options).metrics["quantized_top1"]
    epochs_done = curves.read(folder / curves.FILE)
    return {
        "top1": top1,
        "train": [round(epoch["top1"], 2) for epoch in epochs_done],
        "test": [round(epoch["test_top1"], 2) for epoch in epochs_done],
    }


def table(kept: Kept) -> str:
    """Drops beside those printed, as Markdown; rows are compared with their baseline of as many epochs."""
    lines = [
        "| row | epochs | float top-1 | top-1 | drop | printed float | printed top-1 | printed drop |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in ROWS.items():
        if row.baseline is None:
            continue
        pairs = [(run, kept.of(row.baseline, run["epochs"])) for run in kept.runs if run["row"] == name]
        whole = [(run, base) for run, base in pairs if base]
        reference = REFERENCE.get(row.baseline, ROWS[row.baseline].printed)
        printed = f"{reference:.2f} | {row.printed:.2f} | {reference - row.printed:.2f}"
        if not whole:
            lines.append(f"| `{name}` | | | not run yet | | {printed} |")
            continue
        run, base = max(whole, key=lambda pair: pair[0]["epochs"])
        lines.append(
            f"| `{name}` | {run['epochs']} | {base['top1']:.2f} | {run['top1']:.2f} "
            f"| {base['top1'] - run['top1']:.2f} | {printed} |"
        )
    return "\n".join(lines) + "\n"


def plot(kept: Kept, model: str, path: Path) -> None:
    """Test and training accuracy by epoch of the rows of `model` that have been run."""
    runs = [run for name in ROWS if name.split("-")[0] == model and (run := kept.of(name)) is not None]
    if not runs:
        return
    figure, both = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for axes, which in zip(both, ("train", "test")):
        for run in runs:
            axes.plot(range(1, len(run[which]) + 1), run[which], label=run["row"])
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(f"{which}, top-1 in %", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    both[1].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
