"""What each technique adds: ResNet-20 on CIFAR-10, three levels, one scale a layer, 500 images.

    pip install .
    python benchmarks/ablation.py --data-root DIR

writes `ablation.md`, rows kept in `ablation.json`, so that it can be stopped and continued. Every row has all that the
rows before it have, but for those of the first group, which are alternatives. Times are those of one run only where all
rows were: without `ablation.json` they are.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import click
import torch
from rows import SAMPLES, digest, publish, spread
from torch import nn
from workbench import Workbench

from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.config import DataConfig
from ldnq.files import write_json
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
# Its time is 1.
UNIT = "+ outputs coupled as the network feels them"


def layerwise(solver: str = "coordinate-descent", **options) -> Layerwise:
    """The layer-wise stage with a solver of this name."""
    return Layerwise(solvers.get(solver)(), CODEBOOK, **options)


FAST = layerwise(asymmetric=True, views=1, coupling=COUPLING)
# Distillation that leaves the codes as they are, without the techniques that later rows add.
PLAIN = {"steps": STEPS, "travel": 0.0, "features": 0.0, "mixed": 0.0, "colour": 0.0}
TECHNIQUES: dict[str, tuple[Stage, ...]] = {
    "rounding to the nearest level": (layerwise("nearest"),),
    "ADMM": (layerwise("admm"),),
    "ADMM and cascade update: the paper": (layerwise("admm", cascade=Cascade()),),
    "error feedback": (layerwise("error-feedback"),),
    "error feedback, then coordinate descent": (layerwise(),),
    "+ the teacher's outputs as targets, batch norm corrected": (layerwise(asymmetric=True),),
    "+ random views in the moments": (layerwise(asymmetric=True, views=1),),
    "+ outputs coupled as the network feels them": (FAST,),
    "(the same, then residual blocks reconstructed by gradient: BRECQ)": (FAST, BlockReconstruction(STEPS)),
    "+ scales and batch norm distilled": (FAST, Distillation(**PLAIN)),
    "+ codes distilled": (FAST, Distillation(**PLAIN | {"travel": Distillation.travel})),
    "+ residual blocks in the loss": (FAST, Distillation(STEPS, mixed=0.0, colour=0.0)),
    "+ mixed and recoloured images: preset balanced": (FAST, Distillation(STEPS)),
}


def quantized(bench: Workbench, stages: tuple[Stage, ...], images: CalibrationImages, seed: int) -> nn.Module:
    """The network after these stages; those with gradient steps run in the precision that presets take."""
    generator = torch.Generator().manual_seed(seed)
    if len(stages) > 1:
        images = images.set_apart(HELD_OUT, generator)
        stages = (*stages[:-1], replace(stages[-1], mixed_precision=bench.mixed_precision))
    return apply_stages(bench.network.module, images, stages, generator).student


@click.command()
@click.option("--data-root", required=True, help="The folder of CIFAR-10.")
@click.option("--seeds", type=click.IntRange(1, len(SEEDS)), default=len(SEEDS), help="The first so many.")
def main(data_root: str, seeds: int) -> None:
    """Complete the rows and write the table."""
    path = HERE / "ablation.json"
    weights = digest(MODEL, DATASET)
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [row for row in rows if row["weights"] == weights]
    bench = Workbench(MODEL, DataConfig(DATASET, data_root))
    for seed in SEEDS[:seeds]:
        images = bench.calibration(SAMPLES, seed)
        for name, stages in TECHNIQUES.items():
            if any((row["technique"], row["seed"]) == (name, seed) for row in rows):
                continue
            started = time.perf_counter()
            student = quantized(bench, stages, images, seed)
            seconds, top1 = time.perf_counter() - started, bench.top1(student)
            rows.append({"weights": weights, "technique": name, "seed": seed, "top1": top1, "seconds": seconds})
            click.echo(f"{name}, seed {seed}: {top1:.2f}, {seconds:.0f} s")
            write_json(path, rows)
    publish("ablation.md", table(rows))


def table(rows: list[dict]) -> str:
    """Top-1 with every technique and its time as a multiple of the preset `fast`, as Markdown."""
    lines = ["| technique | top-1 | time | seeds |", "|---|---|---|---|"]
    found = {name: [row for row in rows if row["technique"] == name] for name in TECHNIQUES}
    seconds = {name: sum(row["seconds"] for row in group) / len(group) for name, group in found.items() if group}
    for name, taken in seconds.items():
        cells = name, spread(found[name], "top1"), f"{taken / seconds[UNIT]:.2f}", str(len(found[name]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
