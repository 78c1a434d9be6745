"""Levels chosen layer by layer beside the same levels everywhere, in the same number of bits: ResNet-20 on CIFAR-10.

    pip install .
    python benchmarks/allocation.py --data-root DIR

writes `allocation.md`, rows kept in `allocation.json`, so that it can be stopped and continued. Preset `fast`, one
scale a layer, 500 images; every network is compared with the float one on the test images.

    python benchmarks/allocation.py --data-root DIR --measures

prints what other measures of a layer's harm would choose, compared on training images.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from rows import data_of, data_root_option, digest, load, looking, publish, quick_option, samples, save, spread
from torch import Tensor
from workbench import Workbench

from ldnq.allocation import allocate, choose_levels
from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.config import KBITS, RecipeConfig
from ldnq.datasets.images import Prepared, in_memory
from ldnq.preparation import start
from ldnq.presets import fill_in, layerwise
from ldnq.quantized import QuantizedModel
from ldnq.recipe import apply_stages
from ldnq.sensitivity import Comparison, Labels, Sensitivity, measure_sensitivities
from ldnq.solvers.nearest import Nearest

HERE = Path(__file__).parent
MODEL, DATASET = "resnet20", "cifar10"
SEEDS = (0, 1, 2)
STAGE = layerwise(fill_in(RecipeConfig(preset="fast")))
# Bits a weight of these codebooks everywhere, scales counted, and what lies between.
UNIFORM = (3, 5, 7)
BETWEEN = (2.0,)
BATCH = 500
MEASURES = ("divergence", "agreement", "top1")
# What might add up over the layers, tried with a little less than five levels everywhere take.
HARMS: dict[str, Callable[[Sensitivity], float]] = {
    "divergence": lambda one: one.divergence,
    "square root of the divergence": lambda one: one.divergence**0.5,
    "relative error of the layer": lambda one: one.relative_error,
}
TRIED_BITS = 2.323
TRAINING_IMAGES = 4000


class Bench(Workbench):
    """With the test images in memory, or random training images, and what the float network says of them."""

    def __init__(self, data_root: str | None, training: bool = False) -> None:
        super().__init__(MODEL, data_of(DATASET, data_root))
        self.stage = replace(STAGE, solver=Nearest()) if looking() else STAGE
        images = self.data.train if training else self.data.test
        rng = np.random.default_rng(1234)
        indices = (
            np.sort(rng.choice(len(images), min(len(images), TRAINING_IMAGES), replace=False)) if training else None
        )
        images, labels = in_memory(Prepared(images, self.network.preprocessing, indices))
        self.batches = [self.network.preprocessing.normalize(batch) for batch in images.split(BATCH)]
        self.labels = Labels(labels, lambda outputs: outputs)
        self.targets = self.outputs(self.network.module.eval())

    @torch.no_grad()
    def outputs(self, module: torch.nn.Module) -> list[Tensor]:
        """Of all test images."""
        return [module(batch) for batch in self.batches]

    def sensitivities(self, images: CalibrationImages, seed: int) -> list[list[Sensitivity]]:
        """Of every layer at every number of levels."""
        generator = torch.Generator().manual_seed(seed)
        return list(
            measure_sensitivities(start(self.network.module), images, self.stage, lambda layer: KBITS, generator)
        )

    def run(self, images: CalibrationImages, seed: int, levels: Mapping[str, int]) -> dict[str, float]:
        """The measures of the network with these numbers of levels, and its bits a weight."""
        stage = replace(self.stage, codebooks={name: Codebook.power_of_two(k) for name, k in levels.items()})
        state = apply_stages(self.network.module, images, [stage], torch.Generator().manual_seed(seed))
        comparison = Comparison(self.labels)
        for outputs, targets in zip(self.outputs(state.student), self.targets):
            comparison.add(outputs, targets)
        bits = QuantizedModel(state.student, state.weights).bits_per_weight
        return {"bits_per_weight": bits} | dict(zip(MEASURES, comparison.compute()))


@click.command()
@quick_option
@data_root_option("The folder of CIFAR-10.")
@click.option("--seeds", type=click.IntRange(0, len(SEEDS)), default=len(SEEDS), help="The first so many; 0: none.")
@click.option("--measures", is_flag=True, help="Compare measures of harm on training images instead.")
def main(quick: bool, data_root: str | None, seeds: int, measures: bool) -> None:
    """Complete the rows and write the table."""
    if measures:
        compare_measures(Bench(data_root, training=True))
        return
    path = HERE / "allocation.json"
    weights = digest(MODEL, DATASET)
    rows = [row for row in load(path) if row["weights"] == weights]
    bench = Bench(data_root)
    for seed in SEEDS[: 1 if quick else seeds]:
        if all(any(same(row, seed, size, how) for row in rows) for size, how in kinds()):
            continue
        images = bench.calibration(samples(), seed)
        found = bench.sensitivities(images, seed)
        for size, how in kinds():
            if any(same(row, seed, size, how) for row in rows):
                continue
            levels = chosen(found, size) if how == "chosen" else dict.fromkeys(names(found), int(size))
            row = {"weights": weights, "seed": seed, "size": size, "how": how, "levels": levels}
            rows.append(row | bench.run(images, seed, levels))
            click.echo(f"{how}, {size}, seed {seed}: {rows[-1]['top1']:.2f}")
            save(path, rows)
    publish("allocation.md", table(rows))


def compare_measures(bench: Bench) -> None:
    """Print the divergence of networks of the same levels everywhere, and of those that each measure of harm chooses,
    beside the sum over single layers."""
    images = bench.calibration(samples(), 0)
    found = bench.sensitivities(images, 0)
    weights = sum(trials[0].weights for trials in found)
    bits = [[trial.bits / weights for trial in trials] for trials in found]
    tried = {f"{k} levels everywhere": [KBITS.index(k)] * len(found) for k in KBITS[:4]}
    for name, harm in HARMS.items():
        tried[name] = allocate([[harm(trial) for trial in trials] for trials in found], bits, TRIED_BITS)
    for name, positions in tried.items():
        chosen = [trials[position] for trials, position in zip(found, positions)]
        together = bench.run(images, 0, {one.layer.name: one.num_levels for one in chosen})["divergence"]
        click.echo(f"{name}: {together:.5f}, sum over layers {sum(one.divergence for one in chosen):.5f}")


def kinds() -> list[tuple[float, str]]:
    """What is compared: a size, by the number of levels everywhere or by bits a weight, and how levels are found."""
    sizes = [size for size in UNIFORM if size > min(UNIFORM)]
    return [
        (min(UNIFORM), "the same everywhere"),
        *((bits, "chosen") for bits in BETWEEN),
        *((size, how) for size in sizes for how in ("the same everywhere", "chosen")),
    ]


def same(row: dict, seed: int, size: float, how: str) -> bool:
    return (row["seed"], row["size"], row["how"]) == (seed, size, how)


def names(found: list[list[Sensitivity]]) -> list[str]:
    return [trials[0].layer.name for trials in found]


def chosen(found: list[list[Sensitivity]], size: float) -> dict[str, int]:
    """The levels of each layer in as many bits as `size` levels everywhere take, or in `size` bits a weight."""
    if size in UNIFORM:
        alike = [next(trial for trial in trials if trial.num_levels == size) for trials in found]
        size = sum(trial.bits for trial in alike) / sum(trial.weights for trial in alike)
    return choose_levels(found, size)


def table(rows: list[dict]) -> str:
    """The measures of every kind, as Markdown."""
    lines = [
        "| bits a weight | levels | top-1 | same class as float | divergence, 0.001 nats | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for size, how in kinds():
        group = [row | {"milli": 1000 * row["divergence"]} for row in rows if (row["size"], row["how"]) == (size, how)]
        if group:
            levels = f"{size} everywhere" if how != "chosen" else "chosen"
            measures = " | ".join(spread(group, name) for name in ("top1", "agreement", "milli"))
            lines.append(f"| {group[0]['bits_per_weight']:.2f} | {levels} | {measures} | {len(group)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
