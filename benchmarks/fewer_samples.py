"""What it costs in accuracy to take only some positions and some gradients: ResNet-20 on CIFAR-10, preset `fast`.

    pip install .
    python benchmarks/fewer_samples.py --data-root DIR

writes `fewer_samples.md`: three levels, one scale a layer, 500 images, three draws; the divergence of the quantized
network's outputs from those of the float one on 4,000 other training images, and how often the first class is the same.
"""

import statistics
from dataclasses import replace

import click
import torch
from rows import data_of, data_root_option, publish, quick_option, samples
from torch import Tensor, nn
from workbench import Workbench

from ldnq import runtime
from ldnq.calibration import CalibrationImages
from ldnq.config import RecipeConfig
from ldnq.losses import divergence
from ldnq.preparation import copied
from ldnq.presets import fill_in, layerwise
from ldnq.recipe import apply_stages

SEEDS = (0, 1, 2)
JUDGES = 4000
# By the words of the table: other options of the layer-wise stage of `fast`.
VARIANTS = {
    "all positions, two gradients of each of 500 images": {"felt": 500, "draws": 2},
    "two gradients of 250 images": {"draws": 2},
    "one gradient of 250 images": {},
    "two gradients of 125 images": {"felt": 125, "draws": 2},
    "no gradients": {"coupling": 0.0},
    "`--gram-samples 100000`": {"gram_samples": 100_000},
    "`--gram-samples 30000`": {"gram_samples": 30_000},
    "`--gram-samples 10000`": {"gram_samples": 10_000},
    "`--gram-samples 3000`": {"gram_samples": 3_000},
}


@click.command()
@quick_option
@data_root_option("The folder of CIFAR-10.")
def main(quick: bool, data_root: str | None) -> None:
    """Quantize in every variant, and write the table."""
    bench = Workbench("resnet20", data_of("cifar10", data_root))
    network, count = copied(bench.network.module, runtime.LAYOUT), samples()
    judged_by = JUDGES // 10 if quick else JUDGES
    stage = replace(layerwise(fill_in(RecipeConfig("fast", training=False))), gram_samples=float("inf"))
    lines = ["| moments of | divergence, 1/1000 | same class, % |", "|---|---|---|"]
    for name, options in VARIANTS.items():
        found = []
        for seed in SEEDS[: 1 if quick else None]:
            generator = torch.Generator().manual_seed(seed)
            drawn = bench.calibration(count + judged_by, seed)
            shuffled = drawn.images[torch.randperm(count + judged_by, generator=generator)]
            images, judges = (replace(drawn, images=part) for part in shuffled.split([count, judged_by]))
            student = apply_stages(network, images, (replace(stage, **options),), generator).student
            found.append(judged(student, network, judges))
        cells = (_spread([1000 * value for value, _ in found]), _spread([100 * value for _, value in found]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
        click.echo(lines[-1])
    publish("fewer_samples.md", "\n".join(lines) + "\n")


@torch.no_grad()
def judged(student: nn.Module, teacher: nn.Module, images: CalibrationImages) -> tuple[float, float]:
    """The divergence of the student's outputs, and how often it names the teacher's first class."""
    ours, theirs = (outputs(network, images) for network in (student, teacher))
    return float(divergence(ours, theirs)), float((ours.argmax(1) == theirs.argmax(1)).double().mean())


def outputs(network: nn.Module, images: CalibrationImages) -> Tensor:
    """Of all images."""
    return torch.cat([network(batch.contiguous(memory_format=runtime.LAYOUT)) for batch in images.batches()])


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
