"""What each preset does, what it costs and what it gives, in one table.

    pip install .
    python benchmarks/presets.py --data-root DIR

writes `presets.md`: times of quantizing ResNet-20 and ResNet-56 on CIFAR-10 (three levels, one scale a layer, 500
images) as multiples of the preset `fast`, all taken now, and the mean drops that `accuracy.json` holds.
"""

import statistics
from pathlib import Path

import click
from rows import Configuration, Rows, measure, publish

from ldnq.presets import presets

HERE = Path(__file__).parent
NAMES = ("fast", "balanced", "best", "paper")
MODELS = ("resnet20", "resnet56")


@click.command()
@click.option("--data-root", required=True, help="The folder of CIFAR-10.")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Of every timing; the median.")
def main(data_root: str, repeats: int) -> None:
    """Time every preset and write the table."""
    rows = Rows(HERE / "accuracy.json")
    lines = [
        f"| preset | what it does | {' | '.join(f'time, {model}' for model in MODELS)} "
        f"| {' | '.join(f'drop, {model}' for model in MODELS)} |",
        f"|---|---|{'---|' * 2 * len(MODELS)}",
    ]
    seconds = {(name, model): _seconds(name, model, data_root, repeats) for model in MODELS for name in NAMES}
    for name in NAMES:
        times = [f"{seconds[name, model] / seconds['fast', model]:.1f}" for model in MODELS]
        drops = [_drop(rows.of(Configuration(model, "cifar10", 3, "layer", name))) for model in MODELS]
        lines.append(f"| {name} | {presets.get(name).summary} | {' | '.join(times + drops)} |")
    publish("presets.md", "\n".join(lines) + "\n")


def _seconds(preset: str, model: str, data_root: str, repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        metrics = measure(Configuration(model, "cifar10", 3, "layer", preset), 0, data_root, "auto")
        taken.append(metrics["quantizing_seconds"])
        click.echo(f"{preset}, {model}: {taken[-1]:.0f} s, {metrics['seconds']:.0f} s with evaluation")
    return statistics.median(taken)


def _drop(rows: list[dict]) -> str:
    return f"{statistics.mean(row['top1_drop'] for row in rows):.2f}" if rows else ""


if __name__ == "__main__":
    main()
