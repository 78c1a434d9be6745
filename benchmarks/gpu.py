"""ResNet-50 on one GPU: the time of the whole layer-wise run, and how near to the GPU's peak its inner steps are.

    pip install .
    python benchmarks/gpu.py

writes `gpu.md`: 12,800 generated images at 224 pixels, preset fast, no random views, nothing evaluated; then, for one
layer of each kind, the operations of the Gram matrix and of the solver, counted by torch, in a second, over those of
a large product of square matrices of the same precision in the same run.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import torch
from gram import layers
from rows import publish, quick_option
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldnq import graph
from ldnq.codebook import Codebook
from ldnq.problem import LayerProblem
from ldnq.products import Products
from ldnq.solvers import solvers

IMAGES, PIXELS, MODEL = 12_800, 224, "resnet50"
# Those of a step that is measured by itself, its repeats, and the side of the matrices of the peak.
BATCH, REPEATS, SIDE = 128, 5, 8192
SOLVER = "coordinate-descent"


@click.command()
@quick_option
def main(quick: bool) -> None:
    """Measure, and write the table."""
    if not torch.cuda.is_available():
        raise click.ClickException("expected a CUDA device, found none")
    images, repeats = (256, 1) if quick else (IMAGES, REPEATS)
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}:\n",
        f"| {MODEL}, {images:,} images at {PIXELS} pixels | seconds | GPU memory, MiB |",
        "|---|---|---|",
        *whole(images),
        "",
        "| layer | outputs | Gram matrix and Y Xᵀ, of the peak | solver, of the peak |",
        "|---|---|---|---|",
    ]
    peaks = {dtype: peak(dtype, repeats) for dtype in (torch.float32, torch.float64)}
    for layer, shape in layers(MODEL).items():
        lines.append(measured(layer.cuda(), shape, peaks, repeats))
        click.echo(lines[-1])
    publish("gpu.md", "\n".join(lines) + "\n")


def whole(images: int) -> list[str]:
    """Rows of the run, in a process of its own."""
    script = Path(__file__).parent / "one_run.py"
    words = [MODEL, "--images", images, "--pixels", PIXELS, "--solver", SOLVER, "--device", "cuda"]
    command = [sys.executable, str(script), *map(str, words)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
    both = found["seconds"] + found["solver_seconds"]
    return [
        f"| everything | {both:.1f} | {found['mib']:,.0f} |",
        f"| of it the solver | {found['solver_seconds']:.1f} | |",
    ]


@torch.no_grad()
def measured(layer: nn.Conv2d, shape: tuple[int, ...], peaks: dict[torch.dtype, float], repeats: int) -> str:
    """A row of the table."""
    x = torch.randn(BATCH, *shape, device="cuda").relu().contiguous(memory_format=torch.channels_last)
    y = graph.without_bias(layer, layer(x))
    products = Products(layer)
    gram = rate(lambda: products.add(x, y), repeats) / peaks[torch.float32]
    target = layer.weight.double().reshape(products.groups, products.rows, -1)
    problem = LayerProblem(target, products.gram() / products.positions, Codebook.power_of_two(3), True)
    solver = solvers.get(SOLVER)()
    solving = rate(lambda: solver(problem), repeats) / peaks[torch.float64]
    name = f"{'x'.join(map(str, layer.weight.shape))}, stride {layer.stride[0]}"
    return f"| {name} | {'x'.join(map(str, y.shape[2:]))} | {gram:.0%} | {solving:.1%} |"


def peak(dtype: torch.dtype, repeats: int) -> float:
    """Operations in a second of a product of square matrices."""
    a = torch.randn(SIDE, SIDE, device="cuda", dtype=dtype)
    return rate(lambda: a @ a, repeats)


def rate(run: Callable[[], object], repeats: int) -> float:
    """Operations in a second, as torch counts those of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / median(seconds(run) for _ in range(repeats))


def seconds(run: Callable[[], object]) -> float:
    """Until the GPU is done."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
