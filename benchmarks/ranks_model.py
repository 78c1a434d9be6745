"""A model of time and traffic on many GPUs, on paper: what `docs/scaling-model.md` shows.

    pip install ".[benchmarks]"
    python benchmarks/ranks_model.py [--quick]

counts what every layer of resnet50 asks for, measures what `rank_constants.py` says, a minute on one thread, and writes
`ranks_model.md` and `docs/figures/ranks.svg`. Rates and bandwidths are assumptions: `Machine` has them, and where they
are published.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import click
import matplotlib
import torch
from matplotlib.figure import Figure
from rank_constants import Constants, measure
from rows import FIGURES, publish, quick_option
from torch import nn

from ldnq import graph
from ldnq.complexity import complexity
from ldnq.config import RecipeConfig, RuntimeConfig
from ldnq.correlations import Geometry
from ldnq.network import build, find_family
from ldnq.stages.layerwise import Layerwise

MODEL, IMAGES, SHARE = "resnet50", 1_281_167, 0.01
RANKS = (1, 8, 64, 512)
PARTS = ("reading", "passes", "products", "sensitivities", "solving", "traffic")


@dataclass(frozen=True)
class Machine:
    """An NVIDIA H100 SXM5 and what joins several, from NVIDIA's data sheets of the H100 and the DGX H100.

    `macs` float32 multiply-accumulates and `macs64` float64 ones a second, half of 67 and of 34 TFLOP/s; `nvlink` bytes
    a second one way within a node of `node`, `network` those of its eight adapters of 400 Gb/s, through each of which
    goes an eighth of what goes to other nodes. No data sheet says, and so are assumed: of both bandwidths a half is
    reached; `hop` seconds for every step of a tree; `launch` seconds to ask for an operation; `reading` images a second
    and GPU, decoded by a dozen cores.
    """

    macs: float = 33.5e12
    macs64: float = 17e12
    nvlink: float = 450e9 / 2
    network: float = 8 * 50e9 / 2
    node: int = 8
    hop: float = 10e-6
    launch: float = 5e-6
    reading: float = 1500.0

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds for `size` bytes: in a ring every rank sends 2(p−1)/p of them, in steps as few as a tree's."""
        if ranks == 1:
            return 0.0
        bandwidth = self.nvlink if ranks <= self.node else self.network
        return sent(size, ranks) / bandwidth + 2 * math.ceil(math.log2(ranks)) * self.hop


@dataclass(frozen=True)
class Counts:
    """What a layer of `rows` outputs and `d` inputs asks for: multiply-accumulates of an image in it, `own`, and for
    the products of its inputs and outputs, `products`; `positions` of its outputs."""

    rows: int
    d: int
    positions: int
    own: int
    products: int

    @property
    def reduced(self) -> int:
        """Bytes of sums in float64: X Xᵀ, Y Xᵀ, X 1, Y 1, ‖Y‖² and how many."""
        return 8 * (self.d**2 + self.rows * self.d + self.d + self.rows + 2)

    @property
    def sensitivity(self) -> int:
        """Bytes of the second moments of the outputs' gradients, which are added up once."""
        return 8 * self.rows**2


@click.command()
@quick_option
def main(quick: bool) -> None:
    """Count, measure, and write the tables."""
    layers, constants, machine = counts(), measure(quick), Machine()
    tables = [constants_table(layers, constants)]
    for images in (round(SHARE * IMAGES), IMAGES):
        tables.append(quantizing_table(layers, constants, machine, images))
    tables.append(training_table(layers, constants, machine))
    publish("ranks_model.md", "\n".join(tables))
    if not quick:
        draw(layers, constants, machine)


@torch.no_grad()
def counts() -> list[Counts]:
    """Of every layer of the network, in the order of execution."""
    network, size = build(MODEL, {}), find_family(MODEL).image_size
    geometries: dict[str, Geometry | None] = {}

    def note(name: str, layer: nn.Conv2d, x: torch.Tensor, y: torch.Tensor) -> None:
        geometries[name] = Geometry.of(layer, graph.pad(layer, x).shape[2:], y.shape[2:])

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda layer, x, y, name=name: note(name, layer, x[0], y))
    macs = {layer.name: layer.macs for layer in complexity(network, size) if layer.macs}
    found = []
    for name, own in macs.items():
        weight = network.get_submodule(name).weight
        rows, d = weight.shape[0], weight[0].numel()
        positions, geometry = own // weight.numel(), geometries.get(name)
        # Of blocks that are not on the diagonal one half.
        gram = d**2 * positions * 9 // 16
        if geometry:
            gram = sum(map(geometry.positions, geometry.parts)) * weight.shape[1] ** 2
        found.append(Counts(rows, d, positions, own, gram + own))
    return found


def sent(size: float, ranks: int) -> float:
    """Bytes that a rank sends while `size` of them are added up over all."""
    return 2 * (ranks - 1) / ranks * size


def seconds(
    layers: Sequence[Counts], constants: Constants, machine: Machine, images: int, ranks: int
) -> dict[str, float]:
    """Of `ldnq quantize --preset fast` by its parts."""
    each = dealt(images, ranks)
    total = sum(layer.own for layer in layers)
    passing, multiplying = constants.passes * machine.macs, constants.products * machine.macs
    squares = sum(layer.rows**2 * layer.positions for layer in layers)
    gradients = total * (1 + Layerwise.draws) / passing + Layerwise.draws * squares / multiplying
    # Of a layer with positions to spare the moments take some images.
    products = sum(layer.products / spared(layer, images) for layer in layers)
    asked = sum(constants.launches * layer.d * machine.launch for layer in layers)
    whole = sum(layer.d**3 for layer in layers) / (constants.products * machine.macs64)
    rows = sum(constants.work * layer.rows * layer.d**2 for layer in layers) / (constants.products * machine.macs64)
    reduced = sum(machine.all_reduce(layer.reduced, ranks) for layer in layers)
    gathered = sum(machine.all_reduce(layer.rows * layer.d / 2, ranks) for layer in layers)
    once = machine.all_reduce(sum(layer.sensitivity for layer in layers), ranks)
    return {
        "reading": each / machine.reading,
        "passes": each * 2 * total / passing,
        "products": each * products / multiplying,
        "sensitivities": dealt(Layerwise.felt, ranks) * gradients,
        "solving": asked + whole + rows,
        "traffic": reduced + gathered + once,
    }


def dealt(images: int, ranks: int) -> int:
    """The most images that a rank has: whole batches are dealt."""
    batch = RuntimeConfig().images_at_once(find_family(MODEL).image_size)
    return min(images, math.ceil(math.ceil(images / batch) / ranks) * batch)


def spared(layer: Counts, images: int) -> int:
    """Every how manieth of so many images the moments of a layer take."""
    return max(1, layer.positions * images // RecipeConfig.gram_samples)


def constants_table(layers: Sequence[Counts], constants: Constants) -> str:
    """What was measured, and what was counted."""
    total = sum(layer.own for layer in layers)
    gram = sum(layer.reduced for layer in layers) / 1e9
    rows = [
        ("a pass of resnet50, share of the speed of a matrix product", f"{constants.passes:.2f}"),
        ("products of inputs and outputs, share of the same", f"{constants.products:.2f}"),
        ("operations of the solver for every input of a layer", f"{constants.launches:.0f}"),
        ("multiply-accumulates of the solver for every row and two inputs", f"{constants.work:.0f}"),
        (f"layers of {MODEL}, their inputs together", f"{len(layers)}, {sum(layer.d for layer in layers):,}"),
        ("multiply-accumulates of a pass, of an image", f"{total / 1e9:.1f} G"),
        ("of products of inputs and outputs, of an image", f"{sum(layer.products for layer in layers) / 1e9:.1f} G"),
        ("bytes reduced, all layers", f"{gram:.2f} GB"),
        ("bytes reduced, the largest layer", f"{max(layer.reduced for layer in layers) / 1e6:.0f} MB"),
    ]
    return "| constant | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def quantizing_table(layers: Sequence[Counts], constants: Constants, machine: Machine, images: int) -> str:
    """Seconds by part and ranks, and the bytes that a rank sends."""
    first = sum(seconds(layers, constants, machine, images, 1).values())
    lines = [
        f"| {images:,} images, GPUs | {' | '.join(PARTS)} | all, s | times faster | a GPU sends, GB |",
        "|---" * (len(PARTS) + 4) + "|",
    ]
    for ranks in RANKS:
        found = seconds(layers, constants, machine, images, ranks)
        whole = sum(found.values())
        size = sum(layer.reduced + layer.sensitivity + layer.rows * layer.d / 2 for layer in layers)
        parts = " | ".join(f"{found[part]:.{0 if found[part] >= 100 else 2}f}" for part in PARTS)
        lines.append(f"| {ranks} | {parts} | {whole:.0f} | {first / whole:.0f} | {sent(size, ranks) / 1e9:.2f} |")
    return "\n".join(lines) + "\n"


def training_table(layers: Sequence[Counts], constants: Constants, machine: Machine) -> str:
    """Data-parallel epochs, with so many images a GPU in a step or with so many in all."""
    parameters = sum(layer.rows * layer.d for layer in layers)
    total = sum(layer.own for layer in layers)
    lines = [
        "| GPUs | images a step | a step computes, ms | and adds up gradients, ms | times faster |",
        "|---|---|---|---|---|",
    ]

    def step(images: float, ranks: int) -> tuple[float, float]:
        # Forward, and backward to values and to weights.
        return 3 * total * images / (constants.passes * machine.macs), machine.all_reduce(4 * parameters, ranks)

    alone = sum(step(128, 1)) / 128
    for together in (None, 1024):
        for ranks in RANKS[1:]:
            images = together / ranks if together else 128
            computing, adding = step(images, ranks)
            faster = alone * images * ranks / (computing + adding)
            lines.append(
                f"| {ranks} | {round(images * ranks):,} | {1e3 * computing:.1f} | {1e3 * adding:.1f} | {faster:.0f} |"
            )
    return "\n".join(lines) + "\n"


def draw(layers: Sequence[Counts], constants: Constants, machine: Machine) -> None:
    """Seconds against GPUs, of all parts and of those that stay."""
    matplotlib.rcParams["svg.hashsalt"] = "ldnq"
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="GPUs", ylabel="seconds, by the model", xscale="log", yscale="log")
    ranks = [2**power for power in range(10)]
    for number, images in enumerate((round(SHARE * IMAGES), IMAGES)):
        found = [seconds(layers, constants, machine, images, count) for count in ranks]
        axes.plot(ranks, [sum(parts.values()) for parts in found], f"C{number}-", label=f"{images:,} images")
        whole = sum(found[0].values())
        axes.plot(ranks, [whole / count for count in ranks], f"C{number}:", lw=1, label="the same, if all were split")
    axes.plot(
        ranks, [parts["solving"] + parts["traffic"] for parts in found], "0.4", ls="--", label="solving and traffic"
    )
    axes.set_xticks(RANKS, [str(count) for count in RANKS])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(FIGURES / "ranks.svg", format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
