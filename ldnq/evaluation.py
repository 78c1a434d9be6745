"""Accuracy of a network."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from ldnq import graph
from ldnq.errors import DataError, NetworkError
from ldnq.preprocessing import Preprocessing


@dataclass(frozen=True)
class Accuracy:
    """Percent of `samples` whose label is the likeliest class, and among the five likeliest (or all of fewer)."""

    top1: float
    top5: float
    samples: int
    num_classes: int

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
    """Accuracy of `module` in eval mode over batches of uint8 images and labels.

    `class_subset` lists the outputs that stand for the dataset's classes where the network has more. Raises
    `NetworkError` where outputs and classes do not fit.
    """
    if num_classes < 2:
        raise DataError("expected at least two classes to tell apart, found one")
    metrics = [
        MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro").to(fabric.device) for k in (1, 5)
    ]
    training, samples = module.training, 0
    module.eval()
    for images, labels in batches:
        # The layout in which convolutions are fastest, whatever that of the weights.
        inputs = preprocessing.normalize(images.to(fabric.device)).contiguous(memory_format=torch.channels_last)
        with fabric.autocast():
            logits = graph.forward(module, inputs).float()
        logits = select(logits, num_classes, class_subset)
        for metric in metrics:
            metric.update(logits, labels.to(fabric.device))
        samples += len(labels)
    module.train(training)
    top1, top5 = (100 * float(metric.compute()) for metric in metrics)
    return Accuracy(top1, top5, samples, num_classes)


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
