"""What it costs that one checkpoint has several widths: bytes, and the time of switching.

    pip install .
    python benchmarks/switching.py

writes `switching.md`: networks of random weights at 1, 2, 4 and 8 bits, one thread. Bytes are those of the files beside
those of a file of 8 bits alone. Times are medians: of `set_bits` to another width than before, of making the weights of
that width, which its first pass does, and of a pass of one image.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import click
import torch
from rows import publish, quick_option
from torch import Tensor

import ldnq
from ldnq.calibration import CalibrationImages
from ldnq.network import build, find_family
from ldnq.preparation import start
from ldnq.quantized import QuantizedModel
from ldnq.quantizers.any_precision import AnyPrecision
from ldnq.stages.training import QuantizedTraining
from ldnq.switching import NestedLayer

WIDTHS = (1, 2, 4, 8)
NETWORKS = {"preact-resnet20": {}, "preact-resnet20, five times as wide": {"factor": 5}, "preact-resnet50": {}}
REPEATS = 40


@dataclass(frozen=True)
class Costs:
    """Milliseconds."""

    switch: float
    weights: float
    image: float


@click.command()
@quick_option
def main(quick: bool) -> None:
    """Measure, and write the table."""
    torch.set_num_threads(1)
    lines = [
        "| network | quantized weights | bytes, 1, 2, 4 and 8 bits | bytes, 8 bits alone | codes | batch norms and "
        "scales of three more widths | `set_bits` | weights of a width | pass of an image |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, arguments in list(NETWORKS.items())[: 1 if quick else None]:
        model, image = untrained(name.partition(",")[0], arguments, WIDTHS)
        alone, _ = untrained(name.partition(",")[0], arguments, WIDTHS[-1:])
        sizes, one, costs = saved(model), saved(alone), measured(model, image)
        count = sum(weight.codes.numel() for weight in model.weights.values())
        more = sizes["total"] - one["total"]
        lines.append(
            f"| {name} | {count:,} | {sizes['total']:,} | {one['total']:,} | {sizes['codes']:,} | {more:,} "
            f"| {costs.switch:.3f} ms | {costs.weights:.1f} ms | {costs.image:.1f} ms |"
        )
    publish("switching.md", "\n".join(lines) + "\n")


def untrained(name: str, arguments: dict, widths: tuple[int, ...]) -> tuple[QuantizedModel, Tensor]:
    """A network of random weights at these widths, and an image for it."""
    torch.manual_seed(0)
    family = find_family(name)
    images = torch.rand(2, 3, family.image_size, family.image_size)
    found = CalibrationImages(images, lambda batch: batch, None, 2, torch.device("cpu"))
    stage = QuantizedTraining(AnyPrecision(widths), lambda pupil: None, customary=family.stay_float)
    state = stage(start(build(name, arguments)), found, torch.Generator())
    student = state.student.requires_grad_(False)
    return QuantizedModel(student, state.weights, inputs=state.inputs, precisions=state.precisions), images[:1]


def saved(model: QuantizedModel) -> dict[str, int]:
    """The bytes of its file."""
    with TemporaryDirectory() as folder:
        return ldnq.save(model, Path(folder) / "model.h5")


def measured(model: QuantizedModel, image: Tensor) -> Costs:
    """What it costs to go from one width to the next, around."""
    layers = [part for part in model.module.modules() if isinstance(part, NestedLayer)]
    switch, weights, passes = [], [], []
    for bits in islice(cycle(WIDTHS), REPEATS):
        switch.append(_milliseconds(partial(model.set_bits, bits)))
        weights.append(_milliseconds(lambda: [layer.weight for layer in layers]))
        passes.append(_milliseconds(partial(model.module, image)))
    return Costs(*map(median, (switch, weights, passes)))


def _milliseconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
