"""One network for every width beside a network of its own for each, on CIFAR-10: Any-Precision (arXiv 1911.07346).

    pip install ".[benchmarks]"
    python benchmarks/any_precision.py --data-root DIR --rows recursive,dedicated-1 --factor 5 --epochs 200

trains the rows named, all without `--rows`, of the pre-activation ResNet-20 of this width factor (5 in the paper), each
from random weights, unless `any_precision.json` holds them with so many epochs; then rewrites `any_precision.md`. A run
that was stopped goes on where it was while its folder in `results/` is there.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rows import Kept, data_of, data_root_option, publish, quick_option, results

from ldnq import api
from ldnq.config import DataConfig
from ldnq.report.record import Record

HERE = Path(__file__).parent
MODEL = "preact-resnet20"
WIDTHS = (1, 2, 4, 8, 32)
MODES = ("hard", "soft", "recursive")
ROWS: dict[str, dict[str, Any]] = {f"dedicated-{bits}": {"bits": (bits,)} for bits in WIDTHS}
ROWS |= {mode: {"bits": WIDTHS, "supervision": mode} for mode in MODES}
# Adam does not mind that the gradients of five widths are five times as large as those of one.
RECIPE = {"optimizer": "adam", "lr": 0.004, "weight_decay": 0.0}
# What the repository of the paper prints of its networks, by width.
PRINTED = {
    "dedicated": (91.50, 93.26, 93.62, 93.42, 93.58),
    "hard": (91.48, 93.74, 93.87, 93.92, 93.71),
    "soft": (91.18, 93.51, 93.21, 93.13, 93.63),
    "recursive": (91.89, 93.90, 93.86, 93.75, 94.11),
}


@click.command()
@quick_option
@data_root_option("Where CIFAR-10 lies.")
@click.option("--rows", default=",".join(ROWS), help="Names of rows to train; none: write the table alone.")
@click.option("--factor", default=5, show_default=True, help="How wide the network is.")
@click.option("--epochs", default=200, show_default=True)
@click.option("--threads", default=0, help="Of the processor; 0: torch's choice.")
def main(quick: bool, data_root: str | None, rows: str, factor: int, epochs: int, threads: int) -> None:
    """Train what is not there yet, then write the table."""
    kept = Kept(HERE / "any_precision.json")
    data = data_of("cifar10", data_root)
    if quick:
        rows, factor, epochs = "recursive", 1, 1
    for row in filter(None, rows.split(",")):
        if row not in ROWS:
            raise click.UsageError(f"unknown row {row!r}: expected {', '.join(ROWS)}")
        name = f"{row}, factor {factor}"
        if kept.of(name, epochs) is None:
            folder = results() / f"any-{row}-{factor}-{epochs}"
            kept.add({"row": name, "epochs": epochs, "top1": train(row, factor, epochs, data, threads, folder)})
    publish("any_precision.md", table(kept))


def train(row: str, factor: int, epochs: int, data: DataConfig, threads: int, folder: Path) -> dict[str, float]:
    """Final top-1 by width."""
    if (folder / "metrics.json").exists():
        return Record.read(folder).metrics["top1_at"]
    options = {
        "method": "any-precision", "init": "scratch", "model_args": {"factor": factor}, "dataset": data.dataset,
        "data_root": data.data_root, "epochs": epochs, "threads": threads, "output": folder, **RECIPE, **ROWS[row],
    }  # fmt: skip
    return api.qat(MODEL, **options).metrics["top1_at"]


def table(kept: Kept) -> str:
    """Ours, of each factor and number of epochs that there are, beside those printed, as Markdown."""
    lines = [
        "| network | width factor | epochs | 1 bit | 2 bits | 4 bits | 8 bits | 32 bits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for factor, epochs in sorted({(_factor(run), run["epochs"]) for run in kept.runs}):
        runs = {row: run["top1"] for row in ROWS if (run := kept.of(f"{row}, factor {factor}", epochs))}
        dedicated = [runs.get(f"dedicated-{bits}", {}).get(str(bits)) for bits in WIDTHS]
        lines.append(_line("dedicated, one for each width", factor, epochs, dedicated))
        for mode in MODES:
            lines.append(_line(f"any-precision, {mode}", factor, epochs, runs.get(mode, {}).values() or [None] * 5))
    lines += [_line(f"{name}, as printed", 5, "", values) for name, values in PRINTED.items()]
    return "\n".join(lines) + "\n"


def _factor(run: dict[str, Any]) -> int:
    return int(run["row"].rpartition(" ")[2])


def _line(name: str, factor: int, epochs: Any, values: Iterable[float | None]) -> str:
    shown = " | ".join("not run yet" if value is None else f"{value:.2f}" for value in values)
    return f"| {name} | {factor} | {epochs} | {shown} |"


if __name__ == "__main__":
    main()
