"""One layer-wise run on generated images, in the process that calls it: what it took, as JSON on standard output.

    python benchmarks/one_run.py resnet18 --images 100 --pixels 64

Weights and images are random: neither decides what a run takes. Preset fast, three levels, no random views and nothing
evaluated, one thread. Seconds and MiB are the processor's, so that other work on the machine hardly counts; with
`--device cuda` they are those of the clock and of the GPU's memory.
"""

import json
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch
from PIL import Image

from ldnq.config import CalibrationConfig, DataConfig, NetworkConfig, RecipeConfig, RunConfig, RuntimeConfig
from ldnq.datasets import DatasetFamily, datasets
from ldnq.datasets.images import ArrayImages
from ldnq.network import build
from ldnq.preparation import prepare
from ldnq.problem import LayerProblem, LayerSolution, Solver
from ldnq.recipe import apply_recipe
from ldnq.solvers import solvers

CLASSES = 10
# Sides of the patches of one colour, before they are blurred into each other.
PATCHES = 16


@dataclass(frozen=True)
class Timed:
    """Another solver, and the seconds it has taken on a kind of device."""

    solver: Solver
    device: str
    seconds: list[float] = field(default_factory=list)

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        started = clock(self.device)
        solution = self.solver(problem)
        self.seconds.append(clock(self.device) - started)
        return solution


@click.command()
@click.argument("model")
@click.option("--images", default=100, show_default=True)
@click.option("--pixels", default=64, show_default=True)
@click.option("--width", type=int, help="Channels of the first layer, where the network has such an argument.")
@click.option("--solver", default="coordinate-descent", show_default=True)
@click.option("--max-memory", type=float, help="GiB.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def main(
    model: str, images: int, pixels: int, width: int | None, solver: str, max_memory: float | None, device: str
) -> None:
    """Run, and print the measurements."""
    arguments = {"num_classes": CLASSES} | ({"width": width} if width else {})
    datasets.add("noise", DatasetFamily("noise", noise(images, pixels), "generated", CLASSES, pixels, embedded=True))
    timed = Timed(solvers.get(solver)(), device)
    solvers.add("timed", lambda: timed)
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        torch.manual_seed(0)
        torch.save(build(model, arguments).state_dict(), "weights.pt")
        config = RunConfig(
            NetworkConfig(model, arguments, checkpoint="weights.pt"),
            DataConfig("noise", image_size=pixels),
            CalibrationConfig(samples=images),
            RecipeConfig(preset="fast", solver="timed", kbits=3, views=0, training=False),
            RuntimeConfig(device=device, threads=1, max_memory=max_memory),
        )
        before = peak(device)
        prepared = prepare(config)
        calibration = prepared.images()
        started = clock(device)
        apply_recipe(prepared.network.module, calibration, prepared.config.recipe, seed=0)
        seconds = clock(device) - started
    solving = sum(timed.seconds)
    found = {
        "seconds": seconds - solving,
        "solver_seconds": solving,
        "mib": peak(device),
        "mib_more": peak(device) - before,
    }
    click.echo(json.dumps(found))


def noise(images: int, pixels: int):
    """What loads so many pictures of soft coloured patches to train on, and none to test with."""

    def load(root: Path, split: str, download: bool) -> ArrayImages | None:
        if split == "test":
            return None
        rng = np.random.default_rng(0)
        patches = rng.integers(0, 256, (images, PATCHES, PATCHES, 3), dtype=np.uint8)
        pictures = np.empty((images, pixels, pixels, 3), dtype=np.uint8)
        for picture, colours in zip(pictures, patches):
            picture[:] = Image.fromarray(colours).resize((pixels, pixels))
        return ArrayImages(pictures, np.arange(images) % CLASSES, [str(label) for label in range(CLASSES)])

    return load


def clock(device: str) -> float:
    """Seconds: those that the processor has worked, or those of the clock when a GPU is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak(device: str) -> float:
    """The most memory that this process has held, in MiB."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return torch.cuda.max_memory_allocated() / 2**20


if __name__ == "__main__":
    main()
