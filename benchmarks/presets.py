"""What each preset does, what it costs and what it gives, in one table.

    pip install .
    python benchmarks/presets.py --data-root DIR

writes `presets.md`: the time of quantizing ResNet-20 on CIFAR-10 (three levels, one scale a layer, 500 images) as a
multiple of the preset `fast`, all taken now, and the drop that `accuracy.json` holds.
"""

from collections.abc import Mapping
from pathlib import Path

import click
from rows import Configuration, Rows, data_of, data_root_option, measure, publish, quick_option, samples, spread

from ldnq.presets import presets

HERE = Path(__file__).parent
NAMES = ("fast", "balanced", "best", "paper")


@click.command()
@quick_option
@data_root_option("The folder of CIFAR-10.")
@click.option("--model", default="resnet20", show_default=True, help="Another one: times are printed, not written.")
def main(quick: bool, data_root: str | None, model: str) -> None:
    """Time every preset and write the table."""
    dataset = str(data_of("cifar10", data_root).dataset)
    names = [name for name in NAMES if not quick or name in ("fast", "paper")]
    configurations = {
        name: Configuration(model, dataset, 3, "layer", name, calibration_samples=samples()) for name in names
    }
    seconds = {}
    for name, configuration in configurations.items():
        metrics = measure(configuration, 0, data_root, "auto")
        seconds[name] = metrics["quantizing_seconds"]
        click.echo(f"{name}: {seconds[name]:.0f} s quantizing, {metrics['seconds']:.0f} s in all")
    if model == "resnet20":
        publish("presets.md", table(configurations, seconds))


def table(configurations: Mapping[str, Configuration], seconds: Mapping[str, float]) -> str:
    """A row for each preset, as Markdown."""
    rows = Rows(HERE / "accuracy.json")
    lines = ["| preset | what it does | time | drop |", "|---|---|---|---|"]
    for name, configuration in configurations.items():
        drop = spread(rows.of(configuration), "top1_drop")
        lines.append(f"| {name} | {presets.get(name).summary} | {seconds[name] / seconds['fast']:.1f} | {drop} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
