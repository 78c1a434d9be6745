"""The figures of docs/methods.md, drawn from the network of digits that ships: nothing is downloaded.

    pip install ".[benchmarks]"
    python benchmarks/figures.py

writes `docs/figures/*.svg`, all of them or those that are named. On one machine the same bytes come out every time.
"""

import itertools
from collections.abc import Callable

import click
import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from rows import FIGURES
from subject import LAYER, chosen, digits, distance, problem, quantized, unseen

from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.curvature import sensitivities
from ldnq.graph import run_to
from ldnq.problem import project
from ldnq.quantizers.soft_assignment import STRETCH
from ldnq.solvers.admm import Admm
from ldnq.solvers.coordinate_descent import CoordinateDescent
from ldnq.solvers.error_feedback import ErrorFeedback
from ldnq.solvers.nearest import Nearest
from ldnq.synthesis import Synthesis

SHOWN = 8


def codebook(axes: Axes) -> None:
    """Weights of a layer and the levels that they go to."""
    weights = problem(5).target.flatten().numpy()
    axes.hist(weights, 120, color="0.75", histtype="stepfilled")
    for number, kbits in enumerate((3, 5, 7)):
        book = Codebook.power_of_two(kbits)
        _, scale = project(problem(5).target, book, per_channel=False)
        axes.vlines(
            scale.item() * np.array(book.levels), 0, 330 - 60 * number, f"C{number}", label=f"{kbits} levels", lw=1.5
        )
    axes.set(xlabel=f"weight of {LAYER}", ylabel="how often", yticks=[])
    axes.legend(frameon=False)


def reconstruction(axes: Axes) -> None:
    """Two weights of correlated inputs: nearest is not best."""
    W, H = np.array([0.58, 0.55]), np.array([[1.0, 0.85], [0.85, 1.0]])
    x, y = np.meshgrid(np.linspace(-0.5, 1.5, 200), np.linspace(-0.5, 1.5, 200))
    moved = np.stack([x - W[0], y - W[1]], -1)
    axes.contour(x, y, np.einsum("...i,ij,...j", moved, H, moved), levels=[0.01, 0.05, 0.15, 0.35, 0.7], colors="0.7")
    points = np.array(list(itertools.product((0.0, 1.0), repeat=2)))
    errors = [(point - W) @ H @ (point - W) for point in points]
    axes.scatter(*points.T, color="0.3", zorder=3)
    for point, error in zip(points, errors):
        axes.annotate(f"{error:.2f}", point, xytext=(6, 6), textcoords="offset points")
    axes.scatter(*W, marker="x", color="C3", zorder=3, label="float weights")
    nearest, best = min(points, key=lambda point: ((point - W) ** 2).sum()), points[int(np.argmin(errors))]
    for point, name, colour in ((nearest, "nearest", "C1"), (best, "least output error", "C0")):
        axes.scatter(*point, s=160, facecolors="none", edgecolors=colour, linewidths=2, label=name)
    axes.set(xlabel="first weight / α", ylabel="second weight / α", aspect="equal", xticks=[0, 1], yticks=[0, 1])
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def admm(axes: Axes) -> None:
    """The error of G by iteration."""
    for kbits in (3, 5, 9):
        errors = np.array(Admm(patience=100, max_iterations=40)(problem(kbits)).errors)
        (line,) = axes.semilogy(errors / problem(kbits).error(0 * problem(kbits).target), label=f"{kbits} levels")
        best = errors.argmin()
        axes.plot(best, errors[best] / problem(kbits).error(0 * problem(kbits).target), "o", color=line.get_color())
    axes.set(xlabel="iteration of ADMM; a dot is the one that is kept", ylabel="relative error")
    axes.legend(frameon=False)


def asymmetric(axes: Axes) -> None:
    """How far the student's outputs are from the teacher's, layer by layer."""
    for wanted, name in ((False, "target: teacher's weights, student's inputs"), (True, "target: teacher's outputs")):
        state = quantized(wanted, ErrorFeedback(beam=1))
        errors = [distance(state, result.layer) for result in state.results]
        axes.plot(range(1, len(errors) + 1), errors, "o-", ms=3, label=name)
    axes.set(xlabel="layer in the order of execution", ylabel="relative error of the output", xticks=range(2, 21, 2))
    axes.legend(frameon=False)


def solving(axes: Axes) -> None:
    """The error that each solver leaves."""
    named = {
        "nearest": Nearest(),
        "ADMM": Admm(),
        "error feedback": ErrorFeedback(beam=1),
        "… with a beam": ErrorFeedback(),
        "… then coordinate descent": CoordinateDescent(),
    }
    for number, kbits in enumerate((3, 5)):
        task = problem(kbits)
        errors = [min(solver(task).errors) / task.error(0 * task.target) for solver in named.values()]
        bars = axes.barh(np.arange(len(named)) + 0.4 * number, errors, 0.38, label=f"{kbits} levels")
        axes.bar_label(bars, [f" {error:.3f}" for error in errors], fontsize=8)
    axes.set_yticks(np.arange(len(named)) + 0.2, list(named))
    axes.invert_yaxis()
    axes.set(xlabel=f"relative error of {LAYER}", xticks=[0, 0.05, 0.1, 0.15])
    axes.legend(frameon=False, loc="lower right")


def coupled(axes: Axes) -> None:
    """How the network feels errors of two outputs together."""
    network, images = digits()
    generator = torch.Generator().manual_seed(0)
    S = sensitivities(network.module, [chosen()], images.batches(), 4, generator)[LAYER][0]
    deviation = S.diagonal().sqrt()
    shown = axes.imshow(S / (deviation[:, None] * deviation), cmap="RdBu", vmin=-1, vmax=1)
    axes.figure.colorbar(shown, label="correlation of the gradients")
    axes.set(xlabel="output", ylabel="output", xticks=[], yticks=[])


@torch.no_grad()
def batchnorm(axes: Axes) -> None:
    """Mean and deviation of every channel after the batch norm of a layer, with and without correction."""
    for wanted, name in ((False, "batch norm as it was"), (True, "corrected")):
        state = quantized(wanted, Nearest())
        outputs = [
            run_to(module, LAYER.replace("conv", "bn"), unseen())[0][1] for module in (state.teacher, state.student)
        ]
        axes.scatter(*(output.mean((0, 2, 3)) for output in outputs), s=14, label=name)
    ends = axes.get_xlim()
    axes.plot(ends, ends, color="0.7", zorder=0)
    axes.set(xlabel="mean of a channel in the float network", ylabel="in the quantized one")
    axes.legend(frameon=False)


def blocks(axes: Axes) -> None:
    """How soft a choice between two levels is, while it cools down."""
    v = torch.linspace(-4, 4, 400)
    for temperature in (1.0, 0.3, 0.1, 0.02):
        share = ((1 + 2 * STRETCH) * torch.sigmoid(v / temperature) - STRETCH).clamp(0, 1)
        axes.plot(v, share, label=f"T = {temperature:g}")
    axes.set(xlabel="latent value v", yticks=[0, 1], yticklabels=["lower level", "upper level"])
    axes.legend(frameon=False)


def distillation(axes: Axes) -> None:
    """Latent values at the start: each in the cell of its code, as near to the float weight as that allows."""
    book, task = Codebook.power_of_two(5), problem(5)
    solution = ErrorFeedback(beam=1)(task)
    wanted = task.target / solution.scale
    levels, (lower, upper) = book.values(solution.codes, torch.float64), book.cell(solution.codes, torch.float64)
    latent = levels + 0.9 * (wanted.clamp(lower, upper) - levels)
    for level in book.levels:
        axes.hist(latent[levels == level].numpy(), np.linspace(-2, 2, 81), histtype="stepfilled", label=f"{level:+g}")
    axes.set(xlabel="latent value at the start, in units of the scale", ylabel="how often", yticks=[])
    axes.legend(frameon=False, title="level", fontsize=7)


def synthesis(axes: Axes) -> None:
    """Images that were made up, below real ones."""
    network, images = digits()
    none = CalibrationImages(images.images[:0], images.normalize, None, 100, images.device)
    made = Synthesis(SHOWN)(network.module, none, torch.Generator().manual_seed(0)).images
    rows = [torch.cat(list(pictures.movedim(1, -1)), 1) for pictures in (images.images[:SHOWN], made)]
    axes.imshow(torch.cat(rows), interpolation="nearest")
    axes.set(xticks=[], yticks=[16, 48], yticklabels=["real", "made up"])
    axes.spines[:].set_visible(False)


def activations(axes: Axes) -> None:
    """The error of rounding an activation, by where its grid ends."""
    network, images = digits()
    ((_, values),) = run_to(network.module, "layer2", next(images.batches()))
    values = values.flatten()
    for bits in (4, 6, 8):
        ends = torch.linspace(0.05, 1, 96) * float(values.max())
        errors = []
        for end in ends:
            step = end / (2**bits - 1)
            rounded = (values / step).round().clamp(0, 2**bits - 1) * step
            errors.append(float((rounded - values).square().mean() / values.square().mean()))
        (line,) = axes.semilogy(ends, errors, label=f"{bits} bits")
        best = int(np.argmin(errors))
        axes.plot(ends[best], errors[best], "o", color=line.get_color())
    axes.set(xlabel="largest value on the grid; dots are the least errors", ylabel="relative squared error")
    axes.legend(frameon=False)


DRAWINGS: dict[str, Callable[[Axes], None]] = {
    drawing.__name__: drawing
    for drawing in (
        codebook, reconstruction, admm, asymmetric, solving, coupled, batchnorm, blocks, distillation, synthesis,
        activations,
    )
}  # fmt: skip


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(DRAWINGS)))
def main(names: tuple[str, ...]) -> None:
    """Draw all figures, or those of NAMES."""
    matplotlib.rcParams.update({"svg.hashsalt": "ldnq", "svg.fonttype": "path", "font.size": 10})
    torch.manual_seed(0)
    for name in names or DRAWINGS:
        figure, axes = pyplot.subplots(figsize=(5.2, 2.8), layout="constrained")
        axes.spines[["top", "right"]].set_visible(False)
        DRAWINGS[name](axes)
        figure.savefig(FIGURES / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
        click.echo(f"{FIGURES / name}.svg")


if __name__ == "__main__":
    main()
