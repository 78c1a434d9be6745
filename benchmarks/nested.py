"""Nested codebooks beside networks quantized with each number of levels by themselves.

    pip install .
    python benchmarks/nested.py --data-root DIR [--presets fast,best] [--seeds 0,1,2]

writes `nested.md`: accuracy of ResNet-20 on CIFAR-10 (one scale a layer, 500 images) with 3 to 11 levels, out of one
chain of codes and out of a run for each; and the bits of a weight that all of them need. What has been measured is kept
in `nested.json`.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rows import SAMPLES, digest, publish, spread
from workbench import Workbench

from ldnq.calibration import CalibrationImages
from ldnq.config import KBITS, DataConfig, RecipeConfig
from ldnq.files import write_json
from ldnq.presets import fill_in
from ldnq.quantized import QuantizationState
from ldnq.recipe import apply_nested, apply_recipe

RESULTS = Path(__file__).with_suffix(".json")


@click.command()
@click.option("--data-root", required=True, help="The folder of CIFAR-10.")
@click.option("--presets", default="fast", show_default=True, help="Presets, separated by commas.")
@click.option("--seeds", default="0", show_default=True, help="Draws of the calibration images.")
def main(data_root: str, presets: str, seeds: str) -> None:
    """Quantize in both ways, measure, and write the table."""
    weights = digest("resnet20", "cifar10")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [row for row in found if row["weights"] == weights]
    bench = Workbench("resnet20", DataConfig("cifar10", data_root))
    for seed in map(int, seeds.split(",")):
        images = bench.calibration(SAMPLES, seed)
        for preset in presets.split(","):
            if any(row["preset"] == preset and row["seed"] == seed for row in rows):
                continue
            rows += [{"weights": weights, "seed": seed} | row for row in measured(bench, images, preset, seed)]
            write_json(RESULTS, rows)
    publish("nested.md", table(rows))


def measured(bench: Workbench, images: CalibrationImages, preset: str, seed: int) -> list[dict[str, Any]]:
    """A row for each number of levels."""
    recipe = fill_in(RecipeConfig(preset=preset))
    module = bench.network.module
    nested = apply_nested(module, images, recipe, KBITS, seed, bench.mixed_precision)
    rows = []
    for kbits, state in nested.items():
        own = apply_recipe(module, images, replace(recipe, kbits=kbits), seed, bench.mixed_precision)
        top1 = {"separate": bench.top1(own.student), "nested": bench.top1(state.student)}
        click.echo(f"{preset}, seed {seed}, {kbits} levels: {top1['separate']:.2f} alone, {top1['nested']:.2f} nested")
        rows.append({"preset": preset, "kbits": kbits, "loss": top1["separate"] - top1["nested"]} | top1 | bits(state))
    return rows


def bits(state: QuantizationState) -> dict[str, float]:
    """Of a weight, in mean, its scales apart."""
    weights = state.weights.values()
    return {"bits": sum(w.codes.numel() * w.codebook.bits for w in weights) / sum(w.codes.numel() for w in weights)}


def table(rows: list[dict[str, Any]]) -> str:
    """A row for each preset and number of levels, as Markdown."""
    lines = ["| preset | levels | by itself | nested | lost by nesting |", "|---|---|---|---|---|"]
    for preset in dict.fromkeys(row["preset"] for row in rows):
        of_preset = [row for row in rows if row["preset"] == preset]
        for kbits in KBITS:
            chosen = [row for row in of_preset if row["kbits"] == kbits]
            cells = (spread(chosen, name) for name in ("separate", "nested", "loss"))
            lines.append(f"| {preset} | {kbits} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
