"""What becomes of a network when a single layer is quantized, for each layer and number of levels."""

import copy
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ldnq import ranks
from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.files import write_text
from ldnq.graph import Layer
from ldnq.losses import divergence
from ldnq.progress import track
from ldnq.quantized import QuantizationState
from ldnq.stages.layerwise import Course, Layerwise

COLUMNS = ("name", "shape", "weights", "kbits", "bits_per_weight", "relative_error", "divergence", "agreement", "top1")


@dataclass(frozen=True)
class Sensitivity:
    """A network with `layer` alone at `num_levels` levels, beside the float one.

    The layer has `weights` of so many `bits` in all, scales counted, and outputs with a `relative_error`; `divergence`
    is that of the network's outputs, in nats an image; `agreement` and `top1` are in percent, None where outputs are
    not classes or images have no labels.
    """

    layer: Layer
    num_levels: int
    weights: int
    bits: float
    relative_error: float
    divergence: float
    agreement: float | None
    top1: float | None


@dataclass(frozen=True)
class Labels:
    """Of the first calibration images (n,); `select` takes from all outputs those that stand for the classes."""

    labels: Tensor
    select: Callable[[Tensor], Tensor]


def measure_sensitivities(
    state: QuantizationState,
    images: CalibrationImages,
    layerwise: Layerwise,
    choices: Callable[[Layer], Sequence[int]],
    generator: torch.Generator,
    labels: Labels | None = None,
) -> Iterator[list[Sensitivity]]:
    """For one layer after the other, quantized by `layerwise` while all others stay float: what each of its `choices`
    of numbers of levels does to the network. The student of `state` is a copy of the teacher, and is one afterwards.

    Only what lies behind a layer runs again, and one Gram matrix serves all of its choices.
    """
    course = layerwise.prepare(state, images, generator)
    for layer in track(course.layers, "measuring layers"):
        yield list(_of_layer(state, layer, course, layerwise, choices(layer), labels))


@torch.no_grad()
def _of_layer(
    state: QuantizationState,
    layer: Layer,
    course: Course,
    layerwise: Layerwise,
    choices: Sequence[int],
    labels: Labels | None,
) -> Iterator[Sensitivity]:
    norm = course.joints.student.batch_norm_after(layer.name)
    parts = nn.ModuleList(state.student.get_submodule(name) for name in (layer.name, norm) if name is not None)
    before = copy.deepcopy(parts.state_dict())
    reconstruction = layerwise.reconstruction(state, layer, course)
    trials = {}
    for num_levels in choices:
        result = reconstruction(layerwise.solver, Codebook.power_of_two(num_levels), state)
        written = [weight for name, weight in state.weights.items() if name in (layer.weight_name, layer.bias_name)]
        size = sum(weight.codes.numel() for weight in written), sum(weight.bits for weight in written)
        trials[num_levels] = copy.deepcopy(parts.state_dict()), (*size, result.relative_error)
        parts.load_state_dict(before)
    comparisons = {num_levels: Comparison(labels) for num_levels in trials}
    for student, teacher in course.walks():
        target = teacher.result()
        for num_levels, (values, _) in trials.items():
            parts.load_state_dict(values)
            comparisons[num_levels].add(student.result(), target)
        parts.load_state_dict(before)
    for num_levels, (_, facts) in trials.items():
        yield Sensitivity(layer, num_levels, *facts, *comparisons[num_levels].compute())


class Comparison:
    """Outputs of two networks, batch by batch in the order of the `labels`."""

    def __init__(self, labels: Labels | None) -> None:
        self.labels = labels
        self.images = self.agreed = self.labelled = self.right = 0
        self.divergence, self.classes = 0.0, True

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch of `outputs` against the teacher's."""
        count = len(outputs)
        self.divergence += count * float(divergence(outputs, targets))
        self.classes = outputs.dim() == 2 and outputs.shape[1] > 1
        if self.classes:
            self.agreed += int((outputs.argmax(1) == targets.argmax(1)).sum())
        if self.labels:
            # Random views come after the images themselves, and have no labels.
            labels = self.labels.labels[self.images : self.images + count].to(outputs.device)
            found = self.labels.select(outputs[: len(labels)]).argmax(1)
            self.right += int((found == labels).sum())
            self.labelled += len(labels)
        self.images += count

    def compute(self) -> tuple[float, float | None, float | None]:
        """Divergence, agreement and top-1, as `Sensitivity` has them."""
        divergence, images, agreed = ranks.total(self.divergence, self.images, self.agreed)
        agreement = 100 * agreed / images if self.classes else None
        top1 = 100 * self.right / self.labelled if self.labelled else None
        return divergence / images, agreement, top1


def write_table(found: Iterable[Sensitivity], folder: Path) -> None:
    """`sensitivity.csv` in `folder`, a row for each layer and number of levels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in found:
        shape = "x".join(map(str, one.layer.shape))
        numbers = (one.bits / one.weights, one.relative_error, one.divergence, one.agreement, one.top1)
        texts = ("" if number is None else f"{number:.6g}" for number in numbers)
        writer.writerow((one.layer.name, shape, one.weights, one.num_levels, *texts))
    write_text(folder / "sensitivity.csv", text.getvalue())
