"""How time and memory of the layer-wise run grow: with images, their size, depth and width of the network.

    pip install ".[benchmarks]"
    python benchmarks/scaling.py [--most 3000] [--only images]

writes `scaling.md` and `docs/figures/scaling.svg`, rows kept in `scaling.json`, so that it can be stopped and continued
(without that file all is measured anew). Every row is a process of its own, `benchmarks/one_run.py`, on one thread and
on generated images: preset fast, no random views, nothing evaluated. What is not the solver is measured with the solver
`nearest`, whose time is left out; the preset's solver by itself.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullLocator
from rows import FIGURES, load, publish, quick_option, save

HERE = Path(__file__).parent
KEPT = HERE / "scaling.json"
# GiB: what the widest layer's matrices need, and little more.
MAX_MEMORY = 3.0


@dataclass(frozen=True)
class Case:
    """What a row is a run of."""

    model: str
    images: int = 100
    pixels: int = 64
    width: int | None = None
    solver: str = "nearest"
    max_memory: float | None = None


@dataclass(frozen=True)
class Series:
    """Runs that differ in one `size`; of the preset's solver those `solved`, with `--max-memory` those `limited`."""

    title: str
    size: Callable[[Case], int]
    cases: tuple[Case, ...]
    solved: tuple[Case, ...] = ()
    limited: tuple[Case, ...] = ()


def depth(case: Case) -> int:
    """The number in the name of a ResNet."""
    return int(case.model.removeprefix("resnet"))


def solved(*cases: Case) -> tuple[Case, ...]:
    """The same with the preset's solver."""
    return tuple(replace(case, solver="coordinate-descent") for case in cases)


def limited(*cases: Case) -> tuple[Case, ...]:
    """The same with `--max-memory`."""
    return tuple(replace(case, max_memory=MAX_MEMORY) for case in cases)


IMAGES = tuple(Case("resnet18", images=images) for images in (100, 300, 1000, 3000, 9000))
PIXELS = tuple(Case("resnet18", pixels=pixels) for pixels in (64, 96, 128, 224))
DEPTHS = tuple(Case(f"resnet{layers}") for layers in (18, 34, 50, 101))
WIDTHS = tuple(Case("resnet20", pixels=32, width=width) for width in (16, 32, 64, 128))
SERIES = {
    "images": Series(
        "calibration images (resnet18, 64 pixels)",
        lambda case: case.images,
        IMAGES,
        solved(*IMAGES[:2]),
        limited(*IMAGES, *solved(*IMAGES[:2])),
    ),
    "pixels": Series("side of the images (resnet18, 100 images)", lambda case: case.pixels, PIXELS),
    "depth": Series("depth (resnet18 to resnet101, 100 images of 64 pixels)", depth, DEPTHS, solved(*DEPTHS)),
    "width": Series("width (resnet20, 100 images of 32 pixels)", lambda case: case.width or 0, WIDTHS, solved(*WIDTHS)),
}
QUICK = {
    "images": Series("images", lambda case: case.images, tuple(Case("resnet20", n, 32) for n in (32, 64, 128))),
    "width": Series("width", lambda case: case.width or 0, tuple(Case("resnet20", 32, 32, w) for w in (8, 16, 32))),
}
NOT_YET = "not run yet"


@click.command()
@quick_option
@click.option("--only", type=click.Choice(list(SERIES)), multiple=True, help="Run the rows of this alone. Repeatable.")
@click.option("--most", type=int, help="Run the rows with at most so many images alone; 0: none.")
@click.option("--solvers/--no-solvers", default=True, help="Whether to run the rows of the preset's solver.")
def main(quick: bool, only: tuple[str, ...], most: int | None, solvers: bool) -> None:
    """Complete the rows, then write the table and the figure."""
    series = QUICK if quick else SERIES
    rows = load(KEPT)
    chosen = [case for name in only or series if name in series for case in cases(series[name], solvers)]
    for case in sorted(dict.fromkeys(chosen), key=lambda case: (case.solver != "nearest", work(case))):
        if found(rows, case) or (most is not None and case.images > most):
            continue
        rows.append(asdict(case) | run(case))
        click.echo(rows[-1])
        save(KEPT, rows)
    publish("scaling.md", table(rows, series))
    if not quick:
        draw(rows, FIGURES / "scaling.svg")


def cases(series: Series, solvers: bool) -> tuple[Case, ...]:
    """All runs of a series, or those that are not of the preset's solver."""
    chosen = (*series.cases, *series.solved, *series.limited)
    return tuple(case for case in chosen if solvers or case.solver == "nearest")


def work(case: Case) -> int:
    """What rows are ordered by, so that those that take long come last."""
    return case.images * case.pixels**2 * depth(case) * (case.width or 64)


def found(rows: list[dict], case: Case) -> dict | None:
    """The row of a case, if it was run; one from before cases had some field has its usual value."""
    return next((row for row in rows if asdict(case).items() <= (asdict(Case(row["model"])) | row).items()), None)


def run(case: Case) -> dict[str, float]:
    """Times and memory of a case."""
    command = [
        sys.executable, HERE / "one_run.py", case.model, "--images", case.images, "--pixels", case.pixels,
        "--solver", case.solver, *(["--width", case.width] if case.width else []),
        *(["--max-memory", case.max_memory] if case.max_memory else []),
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise click.ClickException(f"{case} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict], series: dict[str, Series]) -> str:
    """The exponents, then what they were fitted to, as Markdown."""
    fits = [
        "| what grows | from | to | time but for the solver | between the last two | time of the solver | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    points = [
        f"| what grows | to | time but for the solver | time of the solver | MiB | at `--max-memory {MAX_MEMORY:g}` |",
        "|---|---|---|---|---|---|",
    ]
    for one in series.values():
        seconds, solving, memory = points_of(rows, one)
        ends = f"{seconds[0][0]:,} | {seconds[-1][0]:,}" if seconds else "|"
        fits.append(
            f"| {one.title} | {ends} | {exponent(seconds)} | {exponent(seconds[-2:])} | {exponent(solving)} "
            f"| {exponent(memory)} |"
        )
        for case in one.cases:
            row, other = found(rows, case), found(rows, solved(case)[0])
            taken, mib = (f"{row['seconds'] / seconds[0][1]:.2f}", f"{row['mib']:,.0f}") if row else (NOT_YET, "")
            missing = NOT_YET if solved(case)[0] in one.solved else ""
            solver = f"{other['solver_seconds'] / seconds[0][1]:.2f}" if other and seconds else missing
            held = " / ".join(
                f"{row['mib']:,.0f}" for each in (case, *solved(case)) if (row := found(rows, *limited(each)))
            )
            points.append(f"| {one.title} | {one.size(case):,} | {taken} | {solver} | {mib} | {held} |")
    return "\n".join(fits) + "\n\n" + "\n".join(points) + "\n"


Points = list[tuple[int, float]]


def points_of(rows: list[dict], series: Series) -> tuple[Points, Points, Points]:
    """Sizes, and at each the seconds but for the solver, those of the solver, and the MiB beyond those of an idle
    process."""
    plain = [(series.size(case), row) for case in series.cases if (row := found(rows, case))]
    with_solver = [(series.size(case), row) for case in series.solved if (row := found(rows, case))]
    return (
        [(size, row["seconds"]) for size, row in plain],
        [(size, row["solver_seconds"]) for size, row in with_solver],
        [(size, row["mib_more"]) for size, row in plain],
    )


def exponent(points: Points) -> str:
    """The slope of a line through the logarithms, by least squares."""
    if len(points) < 2:
        return ""
    sizes, values = np.log(np.array(points, dtype=float)).T
    return f"{np.polyfit(sizes, values, 1)[0]:.2f}"


def draw(rows: list[dict], path: Path) -> None:
    """Times and memory against each size, as multiples of the first, beside what is linear."""
    matplotlib.rcParams["svg.hashsalt"] = "ldnq"
    figure, panes = pyplot.subplots(1, len(SERIES), figsize=(10, 2.8), layout="constrained")
    for pane, series in zip(panes, SERIES.values()):
        names = ("but for the solver", "solver", "memory")
        for number, (name, points) in enumerate(zip(names, points_of(rows, series))):
            if points:
                sizes, values = zip(*points)
                multiples = [value / values[0] for value in values]
                pane.loglog(sizes, multiples, "o-", ms=3, color=f"C{number}", label=name)
        sizes = [series.size(case) for case in series.cases]
        pane.loglog(sizes, [size / sizes[0] for size in sizes], ":", color="0.5", label="linear")
        pane.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7)
        pane.xaxis.set_minor_locator(NullLocator())
        pane.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        pane.yaxis.set_major_formatter("{x:g}")
        pane.yaxis.set_minor_locator(NullLocator())
        pane.set_xlabel(series.title.partition(" (")[0])
        pane.set_title(series.title.partition(" (")[2].rstrip(")"), fontsize=7)
        pane.spines[["top", "right"]].set_visible(False)
    panes[0].set_ylabel("multiple of the first")
    panes[0].legend(frameon=False, fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
