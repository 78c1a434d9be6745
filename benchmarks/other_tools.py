"""Brevitas, torchao and ldnq on the same network, calibration images and test images: three levels, a scale a channel.

    pip install . -r benchmarks/requirements.txt
    python benchmarks/other_tools.py --data-root DIR [--checkpoint FILE --mean R,G,B --std R,G,B]
    python benchmarks/other_tools.py --data-root DIR --model resnet18 --dataset imagenette --image-size 128

writes `other_tools.md`, rows kept in `other_tools.json`, each with the time of our preset `fast` in the same run.
`with_brevitas.py` says how Brevitas is set up; torchao's fifteen levels are there for scale. The last row is no rival:
it is what training on all images gives, the ceiling for what one percent of them can give.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from full_data import FullDataTraining
from rows import data_of, data_root_option, digest, load, publish, quick_option, samples, save, spread
from torch import nn
from with_brevitas import brevitas, gpfq, gptq, learned_rounding, qronos
from with_torchao import torchao
from workbench import Workbench

from ldnq.calibration import CalibrationImages
from ldnq.commands.options import Triple
from ldnq.config import RecipeConfig
from ldnq.presets import fill_in, stages
from ldnq.recipe import apply_recipe, apply_stages

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
UNIT = "ldnq, fast"
PRESETS = ("paper", "fast", "balanced", "best")
# Of the weights that ship.
DATASETS = ("cifar10", "imagenette")

# A network with its data, calibration images and a seed to a quantized network.
Method = Callable[[Workbench, CalibrationImages, int], nn.Module]


def ldnq(**options: Any) -> Method:
    """Our own, with `options` of `RecipeConfig`."""
    recipe = fill_in(RecipeConfig(kbits=3, scale="channel", **options))

    def quantize(bench: Workbench, images: CalibrationImages, seed: int) -> nn.Module:
        return apply_recipe(bench.network.module, images, recipe, seed, bench.mixed_precision).student

    return quantize


def trained_on_all(bench: Workbench, images: CalibrationImages, seed: int) -> nn.Module:
    """Straight-through training on every training image, from where our preset `fast` ends."""
    everything = bench.calibration(len(bench.data.train), seed)
    recipe = fill_in(RecipeConfig(kbits=3, scale="channel", preset="fast"))
    chosen = (*stages(recipe), FullDataTraining(everything, mixed_precision=bench.mixed_precision))
    return apply_stages(bench.network.module, images, chosen, torch.Generator().manual_seed(seed)).student


METHODS: dict[str, Method] = {
    "torchao, nearest": torchao(1),
    "torchao, nearest, 15 levels": torchao(7),
    "Brevitas, nearest": brevitas(lambda model, batches: None),
    "Brevitas, GPTQ": brevitas(gptq),
    "Brevitas, GPFQ": brevitas(gpfq),
    "Brevitas, Qronos": brevitas(qronos),
    "Brevitas, learned rounding by layer": brevitas(partial(learned_rounding, blocks=False)),
    "Brevitas, learned rounding by block": brevitas(partial(learned_rounding, blocks=True)),
    "ldnq, nearest, nothing else": ldnq(preset="paper", solver="nearest", training=False),
    **{f"ldnq, {preset}": ldnq(preset=preset) for preset in PRESETS},
    "all 50,000 images: straight-through training, 8 epochs": trained_on_all,
}

# Those that need no other tool, nor time.
QUICK = ["ldnq, nearest, nothing else", "ldnq, fast"]


@click.command()
@quick_option
@click.option("--model", default="resnet20", show_default=True)
@click.option("--dataset", type=click.Choice(DATASETS), default="cifar10", show_default=True)
@click.option("--image-size", type=int)
@data_root_option("The folder of the dataset.")
@click.option("--checkpoint", help="Other weights than those that ship.")
@click.option("--mean", type=Triple())
@click.option("--std", type=Triple())
@click.option("--method", default="", help="Run the rows of methods whose names begin so.")
@click.option("--seeds", type=click.IntRange(1, len(SEEDS)), default=len(SEEDS), help="The first so many.")
def main(
    quick: bool,
    model: str,
    dataset: str,
    image_size: int | None,
    data_root: str | None,
    checkpoint: str | None,
    method: str,
    seeds: int,
    **normalization,
) -> None:
    """Complete the rows and write the table."""
    path = HERE / "other_tools.json"
    rows = load(path)
    bench = Workbench(model, data_of(dataset, data_root, image_size=image_size, **normalization), checkpoint)
    chosen = QUICK if quick else [name for name in METHODS if name.startswith(method)]
    weights = Path(checkpoint).name if checkpoint else digest(model, dataset)
    teacher = bench.top1(bench.network.module)
    for seed in SEEDS[: 1 if quick else seeds]:
        images = bench.calibration(samples(), seed)
        done = [row for row in rows if row["seed"] == seed]
        missing = [name for name in chosen if not _rows_of(done, (model, weights, image_size), name)]
        unit = run(UNIT, bench, images, seed) if missing else None
        for name in missing:
            quantized, seconds = unit if name == UNIT else run(name, bench, images, seed)
            top1 = bench.top1(quantized)
            click.echo(f"{name}, seed {seed}: {teacher:.2f} to {top1:.2f} in {seconds:.0f} s")
            rows.append(
                {"model": model, "weights": weights, "image_size": image_size}
                | {"method": name, "seed": seed, "teacher_top1": teacher}
                | {"quantized_top1": top1, "top1_drop": teacher - top1, "seconds": seconds, "unit_seconds": unit[1]}
            )
            save(path, rows)
    publish("other_tools.md", table(rows))


def run(name: str, bench: Workbench, images: CalibrationImages, seed: int) -> tuple[nn.Module, float]:
    """The network by a method, and the seconds it took."""
    torch.manual_seed(seed)
    started = time.perf_counter()
    return METHODS[name](bench, images, seed), time.perf_counter() - started


def table(rows: list[dict]) -> str:
    """Drop in top-1 of every method, and its time as a multiple of our fast preset's, as Markdown."""
    lines = [
        "| network | weights | method | float top-1 | quantized top-1 | drop | time | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for subject in dict.fromkeys(map(_subject, rows)):
        model, weights, image_size = subject
        groups = {name: _rows_of(rows, subject, name) for name in METHODS}
        # Weights that ship are kept by their digest.
        shipped = {digest(model, dataset): f"{model}-{dataset}.safetensors" for dataset in DATASETS}
        file = shipped.get(weights, weights) + (f", {image_size} pixels" if image_size else "")
        for name, group in groups.items():
            times = [row["seconds"] / row["unit_seconds"] for row in group if "unit_seconds" in row]
            if group:
                lines.append(
                    f"| {model} | {file} | {name} | {group[0]['teacher_top1']:.2f} "
                    f"| {spread(group, 'quantized_top1')} | {spread(group, 'top1_drop')} "
                    f"| {f'{statistics.median(times):.1f}' if times else ''} | {len(group)} |"
                )
    return "\n".join(lines) + "\n"


def _subject(row: dict) -> tuple:
    return row["model"], row["weights"], row.get("image_size")


def _rows_of(rows: list[dict], subject: tuple, method: str) -> list[dict]:
    return [row for row in rows if _subject(row) == subject and row["method"] == method]


if __name__ == "__main__":
    main()
