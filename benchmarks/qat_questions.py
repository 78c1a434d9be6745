"""Why some trainings with few bits go wrong: three questions of the DoReFa-Net repository for CIFAR-10.

    pip install .
    python benchmarks/qat_questions.py

writes `qat_questions.md`: a small network on the digits, DoReFa-Net, one thread, a minute or two. Of the last ten
epochs it shows the one whose test accuracy is lowest, measured with the batch-norm statistics that training has kept
and with statistics measured anew on training images; over all epochs but the first the share of weights whose level a
step changes; and of the last epoch the share of the last layer's inputs that are above zero, behind the last ReLU.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean

import click
import torch
import torch.nn.functional as F
from rows import publish, quick_option
from torch import Tensor, nn

from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages
from ldnq.config import DataConfig
from ldnq.data import load_data
from ldnq.datasets import datasets
from ldnq.datasets.images import Prepared, in_memory
from ldnq.preparation import start
from ldnq.preprocessing import Preprocessing
from ldnq.quantizers.dorefa import DoReFa, TanhWeight
from ldnq.recalibration import recalibrate
from ldnq.stages.training import Pupil, QuantizedTraining

SIZE, WIDTH, BATCH = 16, 12, 64
PREPROCESSING = Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3)
LAST = 10
# Where the schedule of steps divides the rate by ten.
MILESTONES = (0.5, 0.75)


@dataclass(frozen=True)
class Trial:
    """A training of `epochs` at the learning rate `lr`, "constant", in "steps" or over "one cycle"."""

    question: str
    bits: int
    schedule: str
    lr: float
    epochs: int
    stepped: str = "float"


TRIALS = (
    Trial("1. quantized weights stepped", 4, "one cycle", 0.1, 20),
    Trial("1. quantized weights stepped", 4, "one cycle", 0.1, 20, "quantized"),
    Trial("1. quantized weights stepped", 4, "one cycle", 1.0, 20, "quantized"),
    Trial("2. test accuracy at a high rate", 1, "constant", 0.1, 30),
    Trial("2. test accuracy at a high rate", 1, "steps", 0.1, 30),
    Trial("3. divergence", 1, "constant", 1.5, 40),
    Trial("3. divergence", 1, "steps", 1.5, 40),
    Trial("3. divergence", 1, "one cycle", 1.5, 40),
)


@dataclass(frozen=True)
class Epoch:
    """In percent: accuracy in training, and in the test with the statistics that training kept and with those measured
    `anew`; weights whose code a step `changed`, and inputs of the last layer that are `alive`, above zero."""

    train: float
    test: float
    anew: float
    changed: float
    alive: float


@dataclass(frozen=True)
class Images:
    """Digits as uint8 (n, 3, s, s), and their labels."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def load(cls) -> "Images":
        """Those that come with scikit-learn."""
        data = load_data(DataConfig("digits"), datasets.get("digits"))
        train, test = (in_memory(Prepared(part, PREPROCESSING), 0) for part in (data.training, data.test))
        return cls(train, test)


@click.command()
@quick_option
def main(quick: bool) -> None:
    """Run all trials and write the table."""
    torch.set_num_threads(1)
    images = Images.load()
    lines = [
        "| question | bits | rate | weights stepped | epochs | train top-1 | test top-1 | test, statistics anew "
        "| codes changed a step | last inputs above 0 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    trials = [replace(trial, epochs=3) for trial in TRIALS[:2]] if quick else TRIALS
    for trial in trials:
        epochs = run(trial, images)
        worst = min(epochs[-LAST:], key=lambda epoch: epoch.test)
        # The first epoch starts from random weights, whose levels mean nothing yet.
        changed = fmean(epoch.changed for epoch in epochs[1:])
        lines.append(
            f"| {trial.question} | {trial.bits} | {trial.lr:g}, {trial.schedule} | {trial.stepped} | {trial.epochs} "
            f"| {worst.train:.1f} | {worst.test:.1f} | {worst.anew:.1f} | {changed:.3f}% | {epochs[-1].alive:.1f}% |"
        )
        click.echo(lines[-1])
    publish("qat_questions.md", "\n".join(lines) + "\n")


def run(trial: Trial, images: Images) -> list[Epoch]:
    """What its epochs were like."""
    torch.manual_seed(0)
    found: list[Epoch] = []

    def fit(pupil: Pupil) -> None:
        found.extend(_epochs(trial, pupil, images))

    stage = QuantizedTraining(DoReFa(trial.bits, trial.bits), fit, step_quantized=trial.stepped == "quantized")
    examples = CalibrationImages(images.train[0][:BATCH], PREPROCESSING.normalize, None, BATCH, torch.device("cpu"))
    stage(start(network()), examples, torch.Generator())
    return found


def network() -> nn.Module:
    """Three convolutions and a linear layer."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    blocks = block(3, WIDTH, 1), block(WIDTH, 2 * WIDTH, 2), block(2 * WIDTH, 4 * WIDTH, 2)
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * WIDTH, 10))


def _epochs(trial: Trial, pupil: Pupil, images: Images) -> Iterator[Epoch]:
    pictures, labels = images.train
    steps = len(pictures) // BATCH
    optimizer = torch.optim.SGD(pupil.parameters, trial.lr, 0.9, weight_decay=1e-4, nesterov=True)
    schedule = _schedule(optimizer, trial, steps * trial.epochs)
    generator = torch.Generator().manual_seed(0)
    augmentation = Augmentation(SIZE, flip=False)
    for _ in range(trial.epochs):
        pupil.module.train()
        right, changed, before = 0, [], _codes(pupil.module)
        for chosen in torch.randperm(len(pictures), generator=generator)[: steps * BATCH].view(steps, BATCH):
            outputs = pupil.module(PREPROCESSING.normalize(augmentation(pictures[chosen], generator)))
            right += int((outputs.argmax(1) == labels[chosen]).sum())
            optimizer.zero_grad()
            F.cross_entropy(outputs, labels[chosen]).backward()
            pupil.before_step()
            optimizer.step()
            pupil.after_step()
            schedule.step()
            after = _codes(pupil.module)
            changed.append(float((before != after).double().mean()))
            before = after
        network = pupil.module.eval()
        yield Epoch(
            100 * right / (steps * BATCH),
            _accuracy(network, images),
            _accuracy(_recalibrated(network, images), images),
            100 * fmean(changed),
            100 * _alive(network, images),
        )


def _schedule(optimizer: torch.optim.Optimizer, trial: Trial, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if trial.schedule == "one cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, trial.lr, steps, cycle_momentum=False)
    milestones = [round(share * steps) for share in MILESTONES] if trial.schedule == "steps" else []
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)


def _codes(module: nn.Module) -> Tensor:
    """Of all quantized weights, flat."""
    found = []
    for part in module.modules():
        quantizer = part.parametrizations.weight[0] if hasattr(part, "parametrizations") else None
        if isinstance(quantizer, TanhWeight):
            found.append(quantizer.quantized(part.parametrizations.weight.original.detach()).codes.flatten())
    return torch.cat(found)


@torch.no_grad()
def _alive(module: nn.Module, images: Images) -> float:
    shares = []
    hook = module[-1].register_forward_pre_hook(lambda _, inputs: shares.append(float((inputs[0] > 0).double().mean())))
    module(PREPROCESSING.normalize(images.test[0]))
    hook.remove()
    return shares[0]


@torch.no_grad()
def _accuracy(module: nn.Module, images: Images) -> float:
    return 100 * float((module(PREPROCESSING.normalize(images.test[0])).argmax(1) == images.test[1]).double().mean())


def _recalibrated(module: nn.Module, images: Images) -> nn.Module:
    module = copy.deepcopy(module).eval()
    recalibrate(module, (PREPROCESSING.normalize(batch) for batch in images.train[0].split(4 * BATCH)))
    return module


if __name__ == "__main__":
    main()
