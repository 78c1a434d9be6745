"""What each technique adds: ResNet-20 on CIFAR-10, three levels, one scale a layer, 500 images.

    pip install .
    python benchmarks/ablation.py --data-root DIR

writes `ablation.md`, rows kept in `ablation.json`, so that it can be stopped and continued. Every row has all that the
rows before it have, but for those of the first group, which are alternatives. Times are those of one run only where all
rows were: without `ablation.json` they are.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import click
import torch
from rows import data_of, data_root_option, digest, load, publish, quick_option, samples, save, spread
from torch import nn
from workbench import Workbench

from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.presets import COUPLING
from ldnq.recipe import HELD_OUT, apply_stages
from ldnq.solvers import solvers
from ldnq.stages import Stage
from ldnq.stages.blocks import BlockReconstruction
from ldnq.stages.cascade import Cascade
from ldnq.stages.distillation import Distillation
from ldnq.stages.layerwise import Layerwise

HERE = Path(__file__).parent
MODEL, DATASET = "resnet20", "cifar10"
CODEBOOK = Codebook.power_of_two(3)
SEEDS = (0, 1, 2)
STEPS = 300


def layerwise(solver: str = "coordinate-descent", **options) -> Layerwise:
    """The layer-wise stage with a solver of this name."""
    return Layerwise(solvers.get(solver)(), CODEBOOK, **options)


FAST = layerwise(asymmetric=True, views=1, coupling=COUPLING)


def techniques(steps: int, cascade: Cascade) -> Mapping[str, tuple[Stage, ...]]:
    """The stages of every row, with so many gradient steps."""
    # Distillation that leaves the codes as they are, without the techniques that later rows add.
    plain = {"steps": steps, "travel": 0.0, "features": 0.0, "mixed": 0.0, "colour": 0.0}
    return {
        "rounding to the nearest level": (layerwise("nearest"),),
        "ADMM": (layerwise("admm"),),
        "ADMM and cascade update: the paper": (layerwise("admm", cascade=cascade),),
        "error feedback": (layerwise("error-feedback"),),
        "error feedback, then coordinate descent": (layerwise(),),
        "+ the teacher's outputs as targets, batch norm corrected": (layerwise(asymmetric=True),),
        "+ random views in the moments": (layerwise(asymmetric=True, views=1),),
        "+ outputs coupled as the network feels them": (FAST,),
        "(the same, then residual blocks reconstructed by gradient: BRECQ)": (FAST, BlockReconstruction(steps)),
        "+ scales and batch norm distilled": (FAST, Distillation(**plain)),
        "+ codes distilled": (FAST, Distillation(**plain | {"travel": Distillation.travel})),
        "+ residual blocks in the loss": (FAST, Distillation(steps, mixed=0.0, colour=0.0)),
        "+ mixed and recoloured images: preset balanced": (FAST, Distillation(steps)),
    }


def quantized(bench: Workbench, stages: tuple[Stage, ...], images: CalibrationImages, seed: int) -> nn.Module:
    """The network after these stages; those with gradient steps run in the precision that presets take."""
    generator = torch.Generator().manual_seed(seed)
    if len(stages) > 1:
        images = images.set_apart(HELD_OUT, generator)
        stages = (*stages[:-1], replace(stages[-1], mixed_precision=bench.mixed_precision))
    return apply_stages(bench.network.module, images, stages, generator).student


@click.command()
@quick_option
@data_root_option("The folder of CIFAR-10.")
@click.option("--seeds", type=click.IntRange(1, len(SEEDS)), default=len(SEEDS), help="The first so many.")
def main(quick: bool, data_root: str | None, seeds: int) -> None:
    """Complete the rows and write the table."""
    path = HERE / "ablation.json"
    weights = digest(MODEL, DATASET)
    rows = [row for row in load(path) if row["weights"] == weights]
    bench = Workbench(MODEL, data_of(DATASET, data_root))
    tried = techniques(STEPS, Cascade())
    if quick:
        tried = dict(list(techniques(2, Cascade(max_epochs=1)).items())[::4])
    for seed in SEEDS[: 1 if quick else seeds]:
        images = bench.calibration(samples(), seed)
        for name, stages in tried.items():
            if any((row["technique"], row["seed"]) == (name, seed) for row in rows):
                continue
            started = time.perf_counter()
            student = quantized(bench, stages, images, seed)
            seconds, top1 = time.perf_counter() - started, bench.top1(student)
            rows.append({"weights": weights, "technique": name, "seed": seed, "top1": top1, "seconds": seconds})
            click.echo(f"{name}, seed {seed}: {top1:.2f}, {seconds:.0f} s")
            save(path, rows)
    publish("ablation.md", table(rows, tried))


def table(rows: list[dict], tried: Iterable[str]) -> str:
    """Top-1 with every technique and, where it was measured, its time as a multiple of the first, as Markdown."""
    lines = ["| technique | top-1 | time | seeds |", "|---|---|---|---|"]
    found = {name: [row for row in rows if row["technique"] == name] for name in tried}
    seconds = {
        name: sum(row["seconds"] for row in group) / len(group)
        for name, group in found.items()
        if group and all("seconds" in row for row in group)
    }
    unit = seconds.get(next(iter(found)))
    for name, group in found.items():
        if group:
            share = f"{seconds[name] / unit:.1f}" if unit and name in seconds else ""
            lines.append(f"| {name} | {spread(group, 'top1')} | {share} | {len(group)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
