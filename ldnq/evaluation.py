"""Accuracy of a network."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from ldnq import graph, ranks, runtime
from ldnq.errors import DataError, NetworkError
from ldnq.preprocessing import Preprocessing


@dataclass(frozen=True)
class Predictions:
    """What a network says of images, one by one in their order: the likeliest `classes` (n,) int64 and the
    `confidences` (n,) float32 that its softmax gives them, beside the images' `labels` (n,) int64."""

    labels: Tensor
    classes: Tensor
    confidences: Tensor


@dataclass(frozen=True)
class Accuracy:
    """Percent of `samples` whose label is the likeliest class, and among the five likeliest (or all of fewer); the
    `predictions` behind it are no part of what makes two alike."""

    top1: float
    top5: float
    samples: int
    num_classes: int
    predictions: Predictions | None = field(default=None, compare=False, repr=False)

    def of_all(self, own: np.ndarray, count: int) -> "Accuracy":
        """That of `count` samples, of which this process has seen its `own`, when it has the predictions of those
        alone."""
        assert self.predictions  # noqa: S101, for the type
        whole = []
        for part in (self.predictions.labels, self.predictions.classes, self.predictions.confidences):
            whole.append(part.new_zeros(count).index_copy(0, torch.from_numpy(own), part))
            ranks.sum_(whole[-1])
        return replace(self, samples=count, predictions=Predictions(*whole))

    @property
    def near_chance(self) -> bool:
        """Whether guessing would do about as well, by three standard deviations and a twentieth of what is left.

        Of a handful of images that is more than anyone could reach: half of what is left is then enough.
        """
        chance = 1 / self.num_classes
        noise = 3 * (chance * (1 - chance) / self.samples) ** 0.5
        return self.top1 / 100 < chance + min(noise + 0.05 * (1 - chance), 0.5 * (1 - chance))


@torch.no_grad()
def evaluate(
    module: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    preprocessing: Preprocessing,
    fabric: Fabric,
    num_classes: int,
    class_subset: Sequence[int] | None = None,
) -> Accuracy:
    """Accuracy of `module` in eval mode over batches of uint8 images and labels, those of all processes; the number of
    samples and the predictions are this one's.

    `class_subset` lists the outputs that stand for the dataset's classes where the network has more. Raises
    `NetworkError` where outputs and classes do not fit.
    """
    if num_classes < 2:
        raise DataError("expected at least two classes to tell apart, found one")
    metrics = [
        MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro").to(fabric.device) for k in (1, 5)
    ]
    training = module.training
    found = [(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0))]
    module.eval()
    for images, labels in batches:
        # The layout in which convolutions are fastest, whatever that of the weights.
        inputs = preprocessing.normalize(images.to(fabric.device)).contiguous(memory_format=runtime.LAYOUT)
        with fabric.autocast():
            logits = graph.forward(module, inputs).float()
        logits = select(logits, num_classes, class_subset)
        for metric in metrics:
            metric.update(logits, labels.to(fabric.device))
        confidences, classes = logits.softmax(1).max(1)
        found.append((labels, classes.cpu(), confidences.cpu()))
    module.train(training)
    top1, top5 = (100 * float(metric.compute()) for metric in metrics)
    predictions = Predictions(*map(torch.cat, zip(*found)))
    return Accuracy(top1, top5, len(predictions.labels), num_classes, predictions)


@torch.no_grad()
def loss_and_top1(
    module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], preprocessing: Preprocessing, fabric: Fabric
) -> tuple[float, float]:
    """Mean cross-entropy, and percent of labels that are the likeliest output, of `module` in eval mode over batches of
    uint8 images and labels, which are dealt to the processes."""
    training, losses, right, count = module.training, 0.0, 0, 0
    module.eval()
    for images, labels in ranks.mine(batches):
        inputs = preprocessing.normalize(images.to(fabric.device)).contiguous(memory_format=runtime.LAYOUT)
        with fabric.autocast():
            logits = graph.forward(module, inputs).float()
        labels = labels.to(fabric.device)
        losses += float(F.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    module.train(training)
    loss, hits, samples = ranks.total(losses, right, count)
    return loss / samples, 100 * hits / samples


def select(logits: Tensor, num_classes: int, class_subset: Sequence[int] | None) -> Tensor:
    """Of the outputs (n, …) those that stand for the classes; raises `NetworkError` where they do not fit."""
    if logits.dim() == 2 and logits.shape[1] == num_classes:
        return logits
    if class_subset is not None and logits.dim() == 2 and logits.shape[1] == 1000:
        return logits[:, list(class_subset)]
    raise NetworkError(
        f"expected one output for each of the dataset's {num_classes} classes, found outputs of shape "
        f"{tuple(logits.shape)}: see --num-classes"
    )
