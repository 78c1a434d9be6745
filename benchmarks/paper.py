"""L-DNQ as published (`--preset paper`) beside the paper's own figures.

    pip install ".[benchmarks]"
    python benchmarks/paper.py --data-root cifar10=DIR --data-root imagenette=DIR

runs what `paper.json` does not hold yet, one row per network, number of levels and seed of the calibration draw, and
rewrites `paper.md` and `paper.svg` from it. It can be stopped at any time and goes on where it was.
"""

import hashlib
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import matplotlib
from matplotlib import pyplot

from ldnq.config import CalibrationConfig, DataConfig, NetworkConfig, RecipeConfig, RunConfig, RuntimeConfig
from ldnq.files import write_json, write_text

HERE = Path(__file__).parent
ROWS = HERE / "paper.json"
SEEDS = (0, 1, 2)
SAMPLES = 500
# (network, dataset, levels, image size, top-1 drop that the authors printed, in points; their paper and their talk)
CONFIGURATIONS = [
    ("resnet20", "cifar10", 3, None, "5.55 / 4.30"),
    ("resnet20", "cifar10", 5, None, ""),
    ("resnet20", "cifar10", 7, None, ""),
    ("resnet20", "cifar10", 9, None, ""),
    ("resnet20", "cifar10", 11, None, ""),
    ("resnet32", "cifar10", 3, None, "3.66"),
    ("resnet56", "cifar10", 3, None, "3.49"),
    ("resnet18", "imagenette", 3, 128, ""),
    ("resnet18", "imagenette", 5, 128, ""),
    ("resnet18", "imagenette", 9, 128, ""),
]
DATA_NAMES = {"cifar10": "CIFAR-10 (JPEG copy)", "imagenette": "Imagenette, 128 pixels"}
KEPT = (
    "model", "dataset", "kbits", "seed", "teacher_top1", "quantized_top1", "top1_drop", "packed_bytes", "float_bytes",
    "bits_per_weight", "eval_samples", "calibration_samples", "seconds",
)  # fmt: skip


@click.command()
@click.option("--data-root", "roots", multiple=True, metavar="DATASET=DIR", help="Where a dataset lies. Repeatable.")
@click.option("--only", metavar="MODEL", help="Run the rows of this network alone.")
@click.option("--run/--no-run", default=True, help="Only rewrite the table and the plot.")
def main(roots: tuple[str, ...], only: str | None, run: bool) -> None:
    """Complete the rows, then write the table and the plot."""
    if not all("=" in root for root in roots):
        raise click.UsageError(f"expected --data-root DATASET=DIR, got {' '.join(roots)}")
    folders = dict(root.split("=", 1) for root in roots)
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else []
    # Rows of weights that have been trained anew since are not worth keeping.
    rows = [row for row in rows if row["weights"] == digest(row["model"], row["dataset"])]
    done = {(row["model"], row["dataset"], row["kbits"], row["seed"]) for row in rows}
    # Seed by seed, so that a table of all configurations comes early.
    for seed in SEEDS if run else ():
        for model, dataset, kbits, image_size, _ in CONFIGURATIONS:
            weights = digest(model, dataset)
            wanted = dataset in folders and only in (None, model) and (model, dataset, kbits, seed) not in done
            if weights is None or not wanted:
                continue
            metrics = measure(model, dataset, kbits, image_size, seed, folders[dataset])
            click.echo(f"{model} {dataset} {kbits} levels, seed {seed}: drop {metrics['top1_drop']:.2f}")
            rows.append({"weights": weights} | {name: metrics[name] for name in KEPT})
            write_json(ROWS, rows)
    write_text(HERE / "paper.md", table(rows))
    plot(rows, HERE / "paper.svg")


def digest(model: str, dataset: str) -> str | None:
    """Of the weights that ship; None where there are none."""
    path = HERE.parent / "pretrained" / f"{model}-{dataset}.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else None


def measure(model: str, dataset: str, kbits: int, image_size: int | None, seed: int, data_root: str) -> dict:
    """The metrics of one run."""
    from ldnq.pipeline import run

    config = RunConfig(
        NetworkConfig(model),
        DataConfig(dataset, data_root, image_size=image_size),
        CalibrationConfig(samples=SAMPLES, seed=seed),
        RecipeConfig(preset="paper", kbits=kbits),
        RuntimeConfig(),
    )
    with TemporaryDirectory() as folder:
        return run(config, Path(folder) / "run").metrics


def table(rows: list[dict]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    lines = [
        "| network | data | levels | float top-1 | quantized top-1 | drop | paper's drop | bits a weight | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, dataset, kbits, _, published in CONFIGURATIONS:
        group = _group(rows, model, dataset, kbits)
        if not group:
            continue
        lines.append(
            f"| {model} | {DATA_NAMES[dataset]} | {kbits} | {group[0]['teacher_top1']:.2f} "
            f"| {_spread(group, 'quantized_top1')} | {_spread(group, 'top1_drop')} | {published} "
            f"| {group[0]['bits_per_weight']:.2f} | {len(group)} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], path: Path) -> None:
    """Top-1 of resnet20 against the number of levels, each seed a dot."""
    matplotlib.rcParams["svg.hashsalt"] = "ldnq"
    rows = [row for row in rows if row["model"] == "resnet20"]
    if not rows:
        return
    levels = sorted({row["kbits"] for row in rows})
    means = [statistics.mean(row["quantized_top1"] for row in rows if row["kbits"] == k) for k in levels]
    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    axes.axhline(rows[0]["teacher_top1"], color="0.4", linestyle="--", label="float network")
    axes.plot(levels, means, color="tab:blue", label="quantized, mean")
    axes.scatter(
        [r["kbits"] for r in rows],
        [r["quantized_top1"] for r in rows],
        s=16,
        color="tab:orange",
        zorder=3,
        label="one seed",
    )
    axes.set_xticks(levels)
    axes.set_xlabel("levels of the codebook")
    axes.set_ylabel("top-1 on the test set, %")
    axes.set_title("ResNet-20, CIFAR-10 (JPEG copy), 500 images, every layer quantized", fontsize=9)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def _group(rows: list[dict], model: str, dataset: str, kbits: int) -> list[dict]:
    return [row for row in rows if (row["model"], row["dataset"], row["kbits"]) == (model, dataset, kbits)]


def _spread(group: list[dict], name: str) -> str:
    values = [row[name] for row in group]
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    main()
