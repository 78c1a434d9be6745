"""Gram matrices of a network's convolutions: time beside that of unfolding, and how exact they are.

    pip install .
    python benchmarks/gram.py [--quick]

writes `gram.md`: for every kind of convolution in ResNet-18 and ResNet-50, at their own image size and on random
images, the time of unfolded columns times themselves, in float32 with sums in float64, over that of `ldnq.products`;
the same with `Y Xᵀ` added; and the relative difference to float64. Ratios are of medians within one run.
"""

import time
from collections.abc import Callable
from statistics import median

import click
import torch
from rows import publish, quick_option
from torch import Tensor, nn

from ldnq import graph
from ldnq.correlations import Correlations, Geometry
from ldnq.network import build, find_family
from ldnq.products import MAX_ENTRIES, Products
from ldnq.unfolded import Unfolded

MODELS = "resnet18", "resnet50"
IMAGES, REPEATS = 64, 3


@click.command()
@click.option("--threads", default=0, help="Of the processor; 0: torch's choice.")
@quick_option
def main(threads: int, quick: bool) -> None:
    """Measure, and write the table."""
    if threads:
        torch.set_num_threads(threads)
    images, repeats = (8, 1) if quick else (IMAGES, REPEATS)
    lines = [
        "| network | convolution | stride | outputs | Gram matrix, times faster | with Y Xᵀ | difference to float64 |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        for layer, shape in layers(model).items():
            x = torch.randn(images, *shape).relu().contiguous(memory_format=torch.channels_last)
            lines.append(f"| {model} {measured(layer, x, repeats)}")
            click.echo(lines[-1])
    publish("gram.md", "\n".join(lines) + "\n")


@torch.no_grad()
def layers(model: str) -> dict[nn.Conv2d, tuple[int, ...]]:
    """One convolution of each kind, and the shape of what it is given."""
    network, size = build(model, {}), find_family(model).image_size
    found: dict[tuple, tuple[nn.Conv2d, tuple[int, ...]]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shape = tuple(inputs[0].shape[1:])
        found.setdefault((tuple(layer.weight.shape), layer.stride, shape), (layer, shape))

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(note)
    network(torch.zeros(1, 3, size, size))
    return dict(found.values())


@torch.no_grad()
def measured(layer: nn.Conv2d, x: Tensor, repeats: int) -> str:
    """A row of the table."""
    y = graph.without_bias(layer, layer(x))
    exact = unfolded(layer, x.double(), None)
    found = ours(layer, x, y)
    difference = float((found - exact).norm() / exact.norm())
    times = [
        median(_seconds(run) for _ in range(repeats))
        for run in (
            lambda: unfolded(layer, x, None),
            lambda: alone(layer, x, y.shape[2:]),
            lambda: unfolded(layer, x, y),
            lambda: ours(layer, x, y),
        )
    ]
    gains = [f"{slow / fast:.1f}" for slow, fast in (times[:2], times[2:])]
    shapes = ("x".join(map(str, shape)) for shape in (layer.weight.shape, layer.stride, y.shape[2:]))
    return f"| {' | '.join((*shapes, *gains))} | {difference:.0e} |"


def unfolded(layer: nn.Conv2d, x: Tensor, y: Tensor | None, step: int = 8) -> Tensor:
    """X Xᵀ, and Y Xᵀ to nowhere, of columns unfolded a few images at a time."""
    gram = cross = 0.0
    for start in range(0, len(x), step):
        columns = graph.unfold(layer, x[start : start + step])
        gram = gram + (columns @ columns.mT).double()
        if y is not None:
            cross = cross + (graph.as_matrix(layer, y[start : start + step]) @ columns.mT).double()
    return gram


def alone(layer: nn.Conv2d, x: Tensor, size: torch.Size) -> Tensor:
    """X Xᵀ as `ldnq.products` has it, without what else that adds up."""
    padded = graph.pad(layer, x).contiguous(memory_format=torch.channels_last)
    geometry = Geometry.of(layer, padded.shape[2:], size)
    found = Correlations(geometry, layer.groups) if geometry else Unfolded(layer)
    for images in padded.split(max(1, MAX_ENTRIES // padded[0].numel(), layer.weight[0].numel() // size.numel())):
        found.add(images)
    return found.gram()


def ours(layer: nn.Conv2d, x: Tensor, y: Tensor) -> Tensor:
    """X Xᵀ, Y Xᵀ and the sums of both."""
    products = Products(layer)
    products.add(x, y)
    return products.gram()


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
