"""Reconstruction error of every solver on the layers of trained networks, beside converged ADMM and the exact optimum.

    pip install .
    python benchmarks/solvers.py --data-root cifar10=DIR --data-root imagenette=DIR

writes `solvers.md`. Every solver gets the same problems: the float weights of a layer and the Gram matrix of its inputs
in the float network, of 500 images; three levels; of ResNet-18 every fourth layer of up to 2,304 inputs. The exact
optimum is known of the part of a problem that belongs to one input and one output channel of a 3x3 convolution: all 3⁹
assignments of levels are tried.
"""

import math
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import torch
from rows import publish, quick_option, samples
from torch import Tensor, nn
from workbench import Workbench

from ldnq.codebook import Codebook
from ldnq.config import SCALES, DataConfig
from ldnq.graph import Layer, find_layers
from ldnq.moments import gather_moments
from ldnq.problem import LayerProblem, Solver
from ldnq.solvers import solvers
from ldnq.solvers.admm import Admm
from ldnq.walk import Walk
from ldnq.wiring import Wiring

HERE = Path(__file__).parent
# Of a layer: converged ADMM takes minutes on wide ones, and hours on the widest.
MOST_INPUTS = 2304
# Dataset, pixels, and every how manieth layer.
NETWORKS = {"resnet20": ("cifar10", None, 1), "resnet18": ("imagenette", 128, 4)}
QUICK = {"resnet20": ("digits", None, 6)}
# Far more patience than the paper has: where it ends, it has converged.
CONVERGED = Admm(max_iterations=1000, patience=50)
CODEBOOK = Codebook.power_of_two(3)
# Output channels of every layer whose first input channel is solved exactly.
EXACT_ROWS = 4


@click.command()
@quick_option
@click.option("--data-root", "roots", multiple=True, metavar="DATASET=DIR", help="Where a dataset lies. Repeatable.")
def main(quick: bool, roots: tuple[str, ...]) -> None:
    """Solve every layer's problem with every solver and write the tables."""
    folders = {"digits": None} if quick else dict(root.split("=", 1) for root in roots)
    errors = ["| network | scale | solver | error, mean of layers | worst layer | time |", "|---|---|---|---|---|---|"]
    exact = ["| network | solver | error, mean of problems | worst problem | problems |", "|---|---|---|---|---|"]
    for model, (dataset, image_size, step) in (QUICK if quick else NETWORKS).items():
        if dataset not in folders:
            continue
        bench = Workbench(model, DataConfig(dataset, folders[dataset], image_size=image_size))
        batches = list(bench.calibration(samples(), seed=0).batches())
        layers = find_layers(bench.network.module, batches[0][:2])[0][::step]
        problems = list(layer_problems(bench.network.module, batches, [each for each in layers if _fits(each)]))
        for scale in SCALES:
            shared = [LayerProblem(p.target, p.gram, p.codebook, scale == "channel") for p in problems]
            errors += [f"| {model} | {scale} | {row}" for row in beside_admm(shared)]
        exact += [f"| {model} | {row}" for row in beside_optimum(problems)]
    text = "Whole layers, converged ADMM is 1:\n\n" + "\n".join(errors)
    text += "\n\nNine weights at a time, the exact optimum is 1:\n\n" + "\n".join(exact)
    publish("solvers.md", text + "\n")


def _fits(layer: Layer) -> bool:
    return math.prod(layer.shape[1:]) <= MOST_INPUTS


@torch.no_grad()
def layer_problems(network: nn.Module, batches: list[Tensor], layers: Iterable[Layer]) -> Iterator[LayerProblem]:
    """The problems of some layers of a float network."""
    wiring = Wiring(network)
    walks = [Walk(wiring, batch) for batch in batches]
    for layer in layers:
        module = network.get_submodule(layer.name)
        calls = (call for walk in walks for call in zip(walk.inputs(layer), walk.outputs(layer)))
        gram = gather_moments(layer, module, module, calls).gram
        yield LayerProblem(layer.to_matrix(module.weight.double()), gram, CODEBOOK)


def beside_admm(problems: list[LayerProblem]) -> Iterator[str]:
    """A row for every solver."""
    errors, seconds = zip(*(solve(CONVERGED, problem) for problem in problems))
    yield "admm, converged | 1 | 1 | 1 |"
    for name in solvers:
        found, taken = zip(*(solve(solvers.get(name)(), problem) for problem in problems))
        ratios = [error / least for error, least in zip(found, errors)]
        yield f"{name} | {statistics.mean(ratios):.3f} | {max(ratios):.3f} | {sum(taken) / sum(seconds):.2f} |"


def beside_optimum(problems: list[LayerProblem]) -> Iterator[str]:
    """A row for every solver, on single rows of single input channels."""
    parts = [
        LayerProblem(p.target[:, row : row + 1, :9], p.gram[:, :9, :9], p.codebook, per_channel=True)
        for p in problems
        for row in range(EXACT_ROWS)
        if p.target.shape[2] % 9 == 0
    ]
    optima = [least_error(part) for part in parts]
    for name in solvers:
        ratios = [solve(solvers.get(name)(), part)[0] / optimum for part, optimum in zip(parts, optima)]
        yield f"{name} | {statistics.mean(ratios):.4f} | {max(ratios):.4f} | {len(parts)} |"


def solve(solver: Solver, problem: LayerProblem) -> tuple[float, float]:
    """The error that a solver leaves, and the seconds of the processor it takes."""
    started = time.process_time()
    solution = solver(problem)
    seconds = time.process_time() - started
    return problem.error(solution.scale * problem.codebook.values(solution.codes, torch.float64)), seconds


def least_error(problem: LayerProblem) -> float:
    """Over every assignment of levels to a single row, each with its best scale."""
    w, H = problem.target[0, 0], problem.gram[0]
    levels: list[Tensor] = [torch.tensor(problem.codebook.levels, dtype=torch.float64)] * len(w)
    Q = torch.cartesian_prod(*levels)
    overlap, norm = Q @ H @ w, (Q @ H * Q).sum(1)
    gains = torch.where((overlap > 0) & (norm > 0), overlap.square() / norm, 0.0)
    return float(w @ H @ w - gains.max())


if __name__ == "__main__":
    main()
