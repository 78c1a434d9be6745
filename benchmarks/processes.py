"""One process against two, a thread each: how much faster the parts of a run are, and whether they come to the same.

    pip install .
    python benchmarks/processes.py --data-root cifar10 [--quick]

writes `processes.md`: ResNet-20 and 500 images of CIFAR-10, preset fast; then 20 steps of distillation, 20 of training
with batch norms alone and 20 with synchronized ones, and 2,000 test images. Both ways are run in turn; ratios are of
medians: of the time until both processes have done, and of the seconds of processor time that the busier of them takes,
which others on the same machine hardly disturb.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from rows import data_of, data_root_option, looking, publish, quick_option, samples
from workbench import Workbench

from ldnq import ranks, runtime
from ldnq.augmentation import Augmentation
from ldnq.config import DataConfig, RecipeConfig, RuntimeConfig
from ldnq.data import Data
from ldnq.datasets.images import ArrayImages, Prepared, in_memory
from ldnq.measurement import measure
from ldnq.preparation import start
from ldnq.presets import fill_in, layerwise
from ldnq.stages import distillation
from ldnq.stages import layerwise as stage
from ldnq.stages.distillation import Distillation
from ldnq.stages.reconstruction import Reconstruction
from ldnq.training import Trainer
from ldnq.training_recipe import TrainingRecipe

CONFIG = RuntimeConfig(device="cpu", precision="32", threads=1)
HEAD = [
    "| part of the work | two processes, times faster | processor time of the busier one, times less | results |",
    "|---|---|---|---|",
]
PARTS = {
    "gram": "Gram matrices, with the passes to them",
    "sensitivities": "sensitivities",
    "solve": "solving layers",
    "quantizing": "the layer-wise stage, all in all",
    "distilling": "steps of distillation",
    "training": "steps of training",
    "synchronized": "steps of training with synchronized batch norms",
    "evaluating": "test images",
}


@click.command()
@quick_option
@data_root_option("The folder of CIFAR-10.")
@click.option("--repeats", default=5, show_default=True, help="Runs each way.")
@click.option("--work", type=click.Path(path_type=Path), hidden=True)
def main(quick: bool, data_root: str | None, repeats: int, work: Path | None) -> None:
    """Run both ways in turn, compare, and write the table."""
    if work:
        with runtime.together(CONFIG):
            measured(data_of("cifar10", data_root), work)
        return
    options = ["--quick"] if quick else ["--data-root", str(data_root)]
    with tempfile.TemporaryDirectory() as folder:
        found: dict[int, list[Path]] = {1: [], 2: []}
        for repeat in range(1 if quick else repeats):
            for number in found:
                found[number].append(Path(folder) / f"{number}-{repeat}")
                launch(number, found[number][-1], options)
        publish("processes.md", "\n".join([*HEAD, *table(found)]) + "\n")


def launch(number: int, folder: Path, options: list[str]) -> None:
    """Work in so many processes, and let them write into `folder`."""
    folder.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    command = [sys.executable, *torchrun, __file__, *options, "--work", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def table(found: dict[int, list[Path]]) -> Iterator[str]:
    """The rows, from what the runs of one and of two processes wrote."""
    seconds = {
        number: [[json.loads(path.read_text()) for path in sorted(run.glob("*.json"))] for run in runs]
        for number, runs in found.items()
    }
    one, two = (np.load(runs[0] / "results.npz") for runs in found.values())
    same = results(one, two)
    for part, name in PARTS.items():
        ratios = []
        for kind in ("wall", "cpu"):
            one_takes, two_take = (
                median(max(rank[part][kind] for rank in run) for run in seconds[number]) for number in (1, 2)
            )
            ratios.append(f"{one_takes / two_take:.2f}")
        yield f"| {name} | {' | '.join(ratios)} | {same.get(part, '')} |"


def results(one: Any, two: Any) -> dict[str, str]:
    """How what two processes found differs from what one did, by the part of the work."""
    differences = [np.linalg.norm(two[name] - one[name]) / np.linalg.norm(one[name]) for name in one if "gram" in name]
    codes = {name for name in one if name.endswith("codes")}
    different = sum(int((one[name] != two[name]).sum()) for name in codes)
    scales = max(np.abs(two[name] / one[name] - 1).max() for name in one if name.endswith("scale"))
    return {
        "gram": f"differ by {max(differences):.0e} at most",
        "solve": f"{different} of {sum(one[name].size for name in codes):,} codes differ, scales by {scales:.0e}",
        **{part: f"loss differs by {_apart(one, two, part)}" for part in ("distilling", "training", "synchronized")},
        "evaluating": f"{int(one['right'])} and {int(two['right'])} right",
    }


def _apart(one: Any, two: Any, name: str) -> str:
    return f"{float(abs(two[name] / one[name] - 1)):.0e}"


class Clock:
    """Seconds by the name of what took them."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = defaultdict(lambda: {"wall": 0.0, "cpu": 0.0})

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Add the time of the block, from where all processes begin it."""
        ranks.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name]["wall"] += time.perf_counter() - wall
        self.seconds[name]["cpu"] += time.process_time() - cpu

    def of(self, name: str, function: Callable, keep: Callable = lambda result: None) -> Callable:
        """`function`, measured, and its results kept."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.measuring(name):
                result = function(*args, **kwargs)
            keep(result)
            return result

        return call


def measured(data: DataConfig, folder: Path) -> None:
    """Work, and write what each process took and what came of it."""
    bench, clock, found = Workbench("resnet20", data), Clock(), {}
    generator = torch.Generator().manual_seed(0)
    images = bench.calibration(samples(), seed=0)
    grams: list[np.ndarray] = []
    stage.gather_moments = clock.of("gram", stage.gather_moments, lambda moments: grams.append(moments.gram.numpy()))
    stage.sensitivities = clock.of("sensitivities", stage.sensitivities)
    Reconstruction.__call__ = clock.of("solve", Reconstruction.__call__)  # type: ignore[method-assign]
    with clock.measuring("quantizing"):
        state = layerwise(fill_in(RecipeConfig(preset="fast")))(start(bench.network.module), images, generator)
    found |= {f"gram {number}": gram for number, gram in enumerate(grams)}
    for name, weight in state.weights.items():
        found |= {f"{name} codes": weight.codes.numpy(), f"{name} scale": weight.scale.numpy()}
    steps = 2 if looking() else 20
    apart = images.set_apart(0.1, generator)
    losses: list[float] = []
    distillation.tensorboard.scalar = lambda name, value, step: losses.append(float(value))
    with clock.measuring("distilling"):
        state = Distillation(steps, checks=1)(state, apart, generator)
    preprocessing, fabric = bench.network.preprocessing, bench.fabric
    found["distilling"] = np.mean(losses)
    pixels, labels = in_memory(Prepared(bench.data.training, preprocessing, np.arange(128 * steps)))
    for part, together in (("training", False), ("synchronized", True)):
        trainer = Trainer(
            start(bench.network.module).student.train(), pixels, labels, preprocessing, Augmentation(32),
            TrainingRecipe(epochs=1, lr=0.01), fabric, folder / "state.pt", "", sync_batchnorm=together,
        )  # fmt: skip
        with clock.measuring(part):
            trainer.run()
        found[part] = np.array(trainer.rows[0]["loss"])
    pixels, labels = in_memory(
        Prepared(bench.data.test, preprocessing, np.arange(min(4 * samples(), len(bench.data.test))))
    )
    test = ArrayImages(pixels.permute(0, 2, 3, 1).numpy(), labels.numpy(), bench.data.class_names)
    data = Data(bench.data.family, None, test)
    with clock.measuring("evaluating"):
        accuracy = measure(bench.network.module, data, preprocessing, CONFIG, fabric, "evaluating")
    found["right"] = np.array(round(accuracy.top1 * accuracy.samples / 100))
    with (folder / f"{ranks.rank()}.json").open("w") as file:
        json.dump(clock.seconds, file)
    if ranks.first():
        np.savez(folder / "results.npz", **found)


if __name__ == "__main__":
    main()
