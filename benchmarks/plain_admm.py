"""The paper's ADMM as a reader of the paper would write it, and ldnq's solvers: time and reconstruction error.

    pip install .
    python benchmarks/plain_admm.py --data-root DIR [--quick]

writes `plain_admm.md`; DIR holds Imagenette. Of ResNet-18 the first layer of every shape, of ResNet-50 those of shapes
that ResNet-18 has not: float weights, the Gram matrix of 500 images of 128 pixels, three levels, one scale a layer.
ResNet-18 has the weights that ship, ResNet-50 random ones from a seed and batch norms that have seen the images: it has
learned nothing, but its inputs are correlated as images are. "In a hurry" is coordinate descent that tries fewer
scales, follows one rounding a row and makes one sweep; "error feedback alone" tries five and makes none.

The plain form solves `(H+ρI) X = …` anew in every iteration, in float64 as all of it. Its first iterations are timed:
how many it makes and what error it ends with is known from `ldnq.solvers.admm`, which factorizes once and makes the
same ones, as tests hold and this script checks. Times are those of one processor core.
"""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import replace

import click
import torch
from rows import data_of, data_root_option, publish, quick_option, samples
from solvers import layer_problems, solve
from torch import Tensor, nn
from workbench import Workbench

from ldnq.graph import Layer, find_layers
from ldnq.network import build
from ldnq.problem import LayerProblem
from ldnq.recalibration import recalibrate
from ldnq.solvers.admm import Admm
from ldnq.solvers.coordinate_descent import CoordinateDescent
from ldnq.solvers.error_feedback import ErrorFeedback
from ldnq.solvers.nearest import Nearest

PIXELS = 128
# Iterations of the plain form that are timed.
TIMED = 3
# What `--quick` takes.
FEW_INPUTS = 256
OURS = {
    "coordinate-descent": CoordinateDescent(),
    "in a hurry": CoordinateDescent((ErrorFeedback(scales=9, beam=1),), max_sweeps=1),
    "error feedback alone": ErrorFeedback(scales=5, beam=1),
}


@click.command()
@quick_option
@data_root_option("The folder of Imagenette.")
def main(quick: bool, data_root: str | None) -> None:
    """Measure, and write the table."""
    torch.set_num_threads(1)
    bench = Workbench("resnet20" if quick else "resnet18", data_of("imagenette", data_root, image_size=PIXELS))
    batches = list(bench.calibration(samples(), seed=0).batches())
    lines = [
        f"| network | layer | iterations | {' | '.join(f'{name}: times faster | error' for name in OURS)} |",
        f"|---|---|---|{'---|---|' * len(OURS)}",
    ]
    seen: set[tuple[int, ...]] = set()
    networks = {"resnet20" if quick else "resnet18": bench.network.module}
    if not quick:
        networks["resnet50"] = untrained("resnet50", batches)
    for model, network in networks.items():
        times: list[list[float]] = []
        for problem in layer_problems(network, batches, list(new_shapes(network, batches[0], seen, quick))):
            lines.append(f"| {model} | {measured(problem, times)}")
            click.echo(lines[-1])
        plain, *own = (sum(column) for column in zip(*times))
        lines.append(f"| {model} | all of these | | {' | '.join(f'{plain / taken:.1f} | ' for taken in own)}|")
        click.echo(lines[-1])
    publish("plain_admm.md", "\n".join(lines) + "\n")


def untrained(model: str, batches: list[Tensor]) -> nn.Module:
    """A network of random weights whose batch norms know the images."""
    torch.manual_seed(0)
    network = build(model, {"num_classes": 10})
    recalibrate(network, batches)
    return network.requires_grad_(False)


def new_shapes(network: nn.Module, batch: Tensor, seen: set[tuple[int, ...]], quick: bool) -> Iterator[Layer]:
    """The first layer of every shape that was not `seen` before, as a matrix."""
    for layer in find_layers(network, batch[:2])[0]:
        shape = (layer.shape[0], math.prod(layer.shape[1:]))
        if shape not in seen and not (quick and shape[1] > FEW_INPUTS):
            seen.add(shape)
            yield layer


def measured(problem: LayerProblem, times: list[list[float]]) -> str:
    """The rest of a row; the seconds of the plain form and of ours are added to `times`."""
    same = Admm()(problem).errors
    error, iterations = min(same), len(same) - 1
    first, seconds = zip(*itertools.islice(plain_admm(problem), TIMED))
    if not torch.allclose(torch.tensor(first), torch.tensor(same[1 : TIMED + 1]), rtol=0.01):
        raise click.ClickException(f"the plain form goes another way: errors of {first}, not {same[1 : TIMED + 1]}")
    plain = iterations * sum(seconds) / len(seconds)
    own = [solve(solver, replace(problem)) for solver in OURS.values()]
    times.append([plain, *(taken for _, taken in own)])
    shape = "x".join(map(str, problem.target.shape[1:]))
    ratios = " | ".join(f"{plain / taken:.1f} | {found / error:.2f}" for found, taken in own)
    return f"{shape} | {iterations} | {ratios} |"


def plain_admm(problem: LayerProblem) -> Iterator[tuple[float, float]]:
    """Section 3.3 of the paper: error and seconds of every iteration."""
    W, H = problem.target[0], problem.gram[0]
    levels = torch.tensor(problem.codebook.levels, dtype=W.dtype)
    start = Nearest()(problem)
    alpha = start.scale.squeeze()
    G, U = alpha * levels[start.codes[0].long()], torch.zeros_like(W)
    rho = H[0, 0]
    identity = torch.eye(len(H), dtype=H.dtype)
    while True:
        begun = time.process_time()
        W_next = torch.linalg.solve(H + rho * identity, (W @ H + rho * (G - U)).T).T
        V, previous = W_next + U, 0.0
        while abs(alpha - previous) > 1e-6 * alpha:
            Q = levels[problem.codebook.nearest(V / alpha).long()]
            previous, alpha = alpha, (V * Q).sum() / Q.square().sum()
        G = alpha * Q
        U = V - G
        error = float(((W - G) @ H * (W - G)).sum())
        yield error, time.process_time() - begun


if __name__ == "__main__":
    main()
