"""Where the time of the main job goes, beside one plain pass of teacher and student over the same images.

    pip install .
    python benchmarks/main_job.py --data-root DIR

writes `main_job.md`: ResNet-18 at 224 pixels, preset `fast`, 500 images, one thread, without reading the images and
without evaluation. What counts is the processor's time spent below a function, found by Python's own profiler; times
are multiples of the plain pass, which is measured before and after.
"""

import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import click
import torch
from rows import data_of, data_root_option, publish, quick_option, samples
from torch import nn
from workbench import Workbench

from ldnq import curvature, problem, runtime
from ldnq.calibration import CalibrationImages
from ldnq.config import RecipeConfig
from ldnq.preparation import copied
from ldnq.presets import fill_in
from ldnq.products import Products
from ldnq.recipe import apply_recipe
from ldnq.solvers import solvers
from ldnq.stages.reconstruction import Reconstruction
from ldnq.walk import Walk

SEED = 0
# Rows of the table, by the functions whose time they are.
PARTS: dict[str, tuple[Callable, ...]] = {
    "passes of student and teacher, layer by layer": (Walk.inputs, Walk.outputs, Walk.value, Walk.rest),
    "Gram matrices and products": (Products.add, Products.gram),
    "sensitivities of outputs": (curvature.sensitivities,),
    "targets by least squares": (problem.least_squares,),
    "solving, writing, correcting": (Reconstruction.__call__,),
}
BEFORE_SOLVING = tuple(PARTS)[:3]


@click.command()
@quick_option
@data_root_option("Where Imagenette lies.")
@click.option("--model", default="resnet18", show_default=True)
@click.option("--image-size", default=224, show_default=True)
@click.option("--kbits", default=3, show_default=True)
@click.option("--solver", default=None, help=f"{', '.join(solvers)}. [default: the preset's]")
def main(quick: bool, data_root: str | None, model: str, image_size: int, kbits: int, solver: str | None) -> None:
    """Measure, and write the table."""
    torch.set_num_threads(1)
    if quick:
        model, image_size = "resnet20", 32
    bench = Workbench(model, data_of("imagenette", data_root, image_size=image_size))
    images = replace(bench.calibration(samples(), SEED), batch_size=bench.config.images_at_once(image_size))
    network = copied(bench.network.module, runtime.LAYOUT)
    recipe = fill_in(RecipeConfig("fast", kbits=kbits, training=False, views=0, solver=solver))
    seconds = [plain_pass(network, images)]
    whole, parts = profiled(lambda: apply_recipe(network, images, recipe, SEED))
    seconds.append(plain_pass(network, images))
    text = table(f"{model}, {image_size} pixels, {len(images)} images", whole, parts, statistics.mean(seconds))
    click.echo(text)
    publish("main_job.md", text)


@torch.no_grad()
def plain_pass(network: nn.Module, images: CalibrationImages) -> float:
    """Seconds of one pass of teacher and student, which cost the same."""
    started = time.process_time()
    for _ in range(2):
        for batch in images.batches():
            network(batch.contiguous(memory_format=runtime.LAYOUT))
    return time.process_time() - started


def profiled(job: Callable[[], object]) -> tuple[float, dict[str, float]]:
    """Seconds of the whole job and of its parts."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(job)
    stats = pstats.Stats(profile)
    spent = {key: cumulative for key, (_, _, _, cumulative, _) in stats.stats.items()}  # type: ignore[attr-defined]
    return stats.total_tt, {  # type: ignore[attr-defined]
        part: sum(spent.get(_key(function), 0.0) for function in functions) for part, functions in PARTS.items()
    }


def table(title: str, whole: float, parts: dict[str, float], plain: float) -> str:
    """The parts as multiples of the plain pass."""
    rows = {
        "one plain pass of both": plain,
        **parts,
        "the rest": whole - sum(parts.values()),
        "**all**": whole,
        "**all but targets, solving and the rest**": sum(parts[part] for part in BEFORE_SOLVING),
    }
    lines = [f"| {title} | time |", "|---|---|", *(f"| {name} | {value / plain:.2f} |" for name, value in rows.items())]
    return "\n".join(lines) + "\n"


def _key(function: Callable) -> tuple[str, int, str]:
    code = getattr(function, "__wrapped__", function).__code__
    return code.co_filename, code.co_firstlineno, code.co_name


if __name__ == "__main__":
    main()
