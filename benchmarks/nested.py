"""Nested codebooks beside networks quantized with each number of levels by themselves.

    pip install .
    python benchmarks/nested.py --data-root DIR [--presets fast,balanced] [--seeds 0,1,2]

writes `nested.md`: accuracy of ResNet-20 on CIFAR-10 (one scale a layer, 500 images) with 3 to 11 levels, as merged out
of one set of codes and as `accuracy.json` holds it of runs by themselves on the same images. What has been measured is
kept in `nested.json`: with more presets or seeds it goes on.
"""

import json
from pathlib import Path
from typing import Any

import click
from rows import SAMPLES, Configuration, Rows, digest, publish, spread
from workbench import Workbench

from ldnq.config import KBITS, DataConfig, RecipeConfig
from ldnq.files import write_json
from ldnq.nesting import merged
from ldnq.presets import fill_in
from ldnq.quantized import QuantizationState
from ldnq.recipe import apply_nested

HERE = Path(__file__).parent
MODEL, DATASET = "resnet20", "cifar10"


@click.command()
@click.option("--data-root", required=True, help="The folder of CIFAR-10.")
@click.option("--presets", default="fast", show_default=True, help="Separated by commas.")
@click.option("--seeds", default="0", show_default=True, help="Of the calibration draws, separated by commas.")
def main(data_root: str, presets: str, seeds: str) -> None:
    """Complete the rows and write the table."""
    path, weights = HERE / "nested.json", digest(MODEL, DATASET)
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [row for row in rows if row["weights"] == weights]
    bench = Workbench(MODEL, DataConfig(DATASET, data_root))
    for seed in map(int, seeds.split(",")):
        for preset in presets.split(","):
            if any((row["preset"], row["seed"]) == (preset, seed) for row in rows):
                continue
            for kbits, top1 in measured(bench, preset, seed).items():
                click.echo(f"{preset}, seed {seed}, {kbits} levels: {top1:.2f}")
                rows.append({"weights": weights, "preset": preset, "seed": seed, "kbits": kbits, "top1": top1})
            write_json(path, rows)
    publish("nested.md", table(rows))


def measured(bench: Workbench, preset: str, seed: int) -> dict[int, float]:
    """Top-1 by the number of levels."""
    images, recipe = bench.calibration(SAMPLES, seed), fill_in(RecipeConfig(preset=preset))
    states = apply_nested(bench.network.module, images, recipe, KBITS, seed, bench.mixed_precision)
    check(states)
    return {kbits: bench.top1(state.student) for kbits, state in states.items()}


def check(states: dict[int, QuantizationState]) -> None:
    """Raise `SystemExit` where codes are not those of the most levels, merged."""
    most = max(states)
    for kbits, state in states.items():
        for name, weight in state.weights.items():
            if not merged(states[most].weights[name].codes, most, kbits).equal(weight.codes):
                raise SystemExit(f"{name} has other codes on {kbits} levels than those on {most} levels merge into")


def table(rows: list[dict[str, Any]]) -> str:
    """A row for each preset and number of levels, as Markdown."""
    alone = Rows(HERE / "accuracy.json")
    lines = ["| preset | levels | by itself | nested | lost by nesting |", "|---|---|---|---|---|"]
    for preset in dict.fromkeys(row["preset"] for row in rows):
        for kbits in KBITS:
            nested = {row["seed"]: row for row in rows if (row["preset"], row["kbits"]) == (preset, kbits)}
            own = {row["seed"]: row for row in alone.of(Configuration(MODEL, DATASET, kbits, preset=preset))}
            pairs = [
                {"own": own[seed]["quantized_top1"], "nested": row["top1"]}
                for seed, row in nested.items()
                if seed in own
            ]
            pairs = [pair | {"lost": pair["own"] - pair["nested"]} for pair in pairs]
            cells = " | ".join(spread(pairs, name) for name in ("own", "nested", "lost"))
            lines.append(f"| {preset} | {kbits} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
