"""Nested codebooks beside networks quantized with each number of levels by themselves.

    pip install .
    python benchmarks/nested.py --data-root DIR [--presets fast,balanced] [--seeds 0,1,2]

writes `nested.md`: accuracy of ResNet-20 on CIFAR-10 (one scale a layer, 500 images) with 3 to 11 levels, as merged out
of one set of codes and of runs by themselves on the same images. What has been measured is kept in `nested.json`: with
more presets or seeds it goes on.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rows import data_of, data_root_option, digest, load, publish, quick_option, samples, save, spread
from workbench import Workbench

from ldnq.config import KBITS, RecipeConfig
from ldnq.nesting import merged
from ldnq.presets import fill_in
from ldnq.quantized import QuantizationState
from ldnq.recipe import apply_nested, apply_recipe

HERE = Path(__file__).parent
MODEL, DATASET = "resnet20", "cifar10"


@click.command()
@quick_option
@data_root_option("The folder of CIFAR-10.")
@click.option("--presets", default="fast", show_default=True, help="Separated by commas.")
@click.option("--seeds", default="0", show_default=True, help="Of the calibration draws, separated by commas.")
def main(quick: bool, data_root: str | None, presets: str, seeds: str) -> None:
    """Complete the rows and write the table."""
    path, weights = HERE / "nested.json", digest(MODEL, DATASET)
    rows = [row for row in load(path) if row["weights"] == weights]
    bench = Workbench(MODEL, data_of(DATASET, data_root))
    kbits = KBITS[:2] if quick else KBITS
    for seed in map(int, seeds.split(",")):
        for preset in presets.split(","):
            if any((row["preset"], row["seed"]) == (preset, seed) for row in rows):
                continue
            rows += [{"weights": weights, "seed": seed} | row for row in measured(bench, preset, seed, kbits)]
            save(path, rows)
    publish("nested.md", table(rows))


def measured(bench: Workbench, preset: str, seed: int, levels: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each number of levels, with both accuracies."""
    images, recipe = bench.calibration(samples(), seed), fill_in(RecipeConfig(preset=preset))
    module, rows = bench.network.module, []
    states = apply_nested(module, images, recipe, levels, seed, bench.mixed_precision)
    check(states)
    for kbits, state in states.items():
        own = apply_recipe(module, images, replace(recipe, kbits=kbits), seed, bench.mixed_precision)
        top1 = {"own": bench.top1(own.student), "nested": bench.top1(state.student)}
        rows.append({"preset": preset, "kbits": kbits, "lost": top1["own"] - top1["nested"]} | top1)
        click.echo(f"{preset}, seed {seed}, {kbits} levels: {top1['own']:.2f} by itself, {top1['nested']:.2f} nested")
    return rows


def check(states: dict[int, QuantizationState]) -> None:
    """Raise `SystemExit` where codes are not those of the most levels, merged."""
    most = max(states)
    for kbits, state in states.items():
        for name, weight in state.weights.items():
            if not merged(states[most].weights[name].codes, most, kbits).equal(weight.codes):
                raise SystemExit(f"{name} has other codes on {kbits} levels than those on {most} levels merge into")


def table(rows: list[dict[str, Any]]) -> str:
    """A row for each preset and number of levels, as Markdown."""
    lines = ["| preset | levels | by itself | nested | lost by nesting |", "|---|---|---|---|---|"]
    for preset in dict.fromkeys(row["preset"] for row in rows):
        for kbits in KBITS:
            chosen = [row for row in rows if (row["preset"], row["kbits"]) == (preset, kbits)]
            if not chosen:
                continue
            cells = " | ".join(spread(chosen, name) for name in ("own", "nested", "lost"))
            lines.append(f"| {preset} | {kbits} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
