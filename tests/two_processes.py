"""What `test_ranks.py` does in one process and in two: the same work, and in two a run that loses one of them.

Run by `torchrun --nproc-per-node 2 tests/two_processes.py FOLDER`, with pictures in FOLDER/pictures.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ldnq import ranks, runtime
from ldnq.allocation import settle_levels
from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages
from ldnq.cli import main
from ldnq.config import RecipeConfig, RuntimeConfig
from ldnq.data import Data
from ldnq.datasets.images import ArrayImages, Prepared, in_memory
from ldnq.datasets.registry import datasets
from ldnq.errors import DataError
from ldnq.evaluation import loss_and_top1
from ldnq.graph import find_layers
from ldnq.journal import FileJournal
from ldnq.measurement import measure
from ldnq.moments import gather_moments
from ldnq.preprocessing import Preprocessing
from ldnq.presets import fill_in
from ldnq.recipe import apply_recipe
from ldnq.training import Trainer
from ldnq.training_recipe import TrainingRecipe
from ldnq.walk import Walk
from ldnq.wiring import Wiring

CONFIG = RuntimeConfig(device="cpu", precision="32", batch_size=8, threads=1)
PREPROCESSING = Preprocessing(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def network():
    """Convolutions with batch norms, one of them with as many groups as channels, and a linear layer."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9), nn.ReLU(),
        nn.Conv2d(9, 9, 3, padding=1, groups=9, bias=False), nn.BatchNorm2d(9), nn.ReLU(),
        nn.Conv2d(9, 12, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip
    module(torch.randn(64, 3, 8, 8))
    return module.eval()


def pictures(count=44):
    """Random ones of the ten digits."""
    rng = np.random.default_rng(0)
    return ArrayImages(rng.integers(0, 256, (count, 8, 8, 3)), rng.integers(0, 10, count), tuple("0123456789"))


def work(folder):
    """All that is to be the same, by name: tensors and numbers."""
    images = pictures()
    pixels, labels = in_memory(Prepared(images, PREPROCESSING))
    calibration = CalibrationImages(pixels, PREPROCESSING.normalize, Augmentation(8), 8, torch.device("cpu"))
    found = {"images": pixels, **gram(calibration)}
    for name, recipe in (
        ("fast", RecipeConfig(preset="fast", views=1)),
        ("channel", RecipeConfig(preset="fast", views=0, solver="admm", scale="channel", quantize_bias=True)),
        ("auto", RecipeConfig(preset="fast", views=0, kbits="auto", target_bits=2.0)),
        ("rows", RecipeConfig(preset="paper", solver="coordinate-descent", scale="channel", training=False)),
        ("cascade", RecipeConfig(preset="paper", cascade_epochs=1)),
        ("distilled", RecipeConfig(preset="fast", distillation_steps=3, block_steps=2)),
    ):
        found |= {f"{name} {key}": value for key, value in quantized(calibration, recipe).items()}
    data = Data(datasets.get("digits"), images, images)
    fabric = runtime.start(CONFIG)
    accuracy = measure(network(), data, PREPROCESSING, CONFIG, fabric, "")
    found |= {"top1": accuracy.top1, "top5": accuracy.top5, "samples": accuracy.samples}
    found |= {"classes": accuracy.predictions.classes, "confidences": accuracy.predictions.confidences}
    batches = zip(pixels.split(8), labels.split(8))
    found["loss"], found["right"] = loss_and_top1(network(), batches, PREPROCESSING, fabric)
    for name, sync in (("synchronized", True), ("alone", False)):
        module = network().train()
        recipe = TrainingRecipe(epochs=2, batch_size=15, lr=0.01, ema=0.5, keep="best")
        state = folder / f"{name}.pt"
        trainer = Trainer(
            module, pixels, labels, PREPROCESSING, Augmentation(8), recipe, fabric, state, "", sync_batchnorm=sync
        )  # fmt: skip
        trainer.run()
        found |= {f"{name} {key}": value for key, value in module.state_dict().items()}
        found |= {f"{name} losses": [row["loss"] for row in trainer.rows], f"{name} type": type(module[1])}
    return found


def gram(calibration):
    """Second moments of the last convolution's inputs."""
    module = network()
    layer = find_layers(module, next(iter(calibration.batches())))[0][2]
    walks = [Walk(Wiring(module), batch) for batch in ranks.mine(calibration.batches())]
    calls = [(x, y) for walk in walks for x, y in zip(walk.inputs(layer), walk.outputs(layer))]
    moments = gather_moments(layer, module[6], module[6], calls)
    return {"gram": moments.gram, "positions": moments.positions, "own": len(walks)}


def quantized(calibration, recipe):
    """Codes and scales, and the rest of the network."""
    settled, _ = settle_levels(network(), calibration, fill_in(recipe), 0)
    state = apply_recipe(network(), calibration, settled, 0)
    found = {f"{name} codes": weight.codes for name, weight in state.weights.items()}
    found |= {f"{name} scale": weight.scale for name, weight in state.weights.items()}
    return found | {f"{name} value": value for name, value in state.student.state_dict().items()}


def agreed():
    """What the first process alone decides, also that something is wrong."""

    def fail():
        raise DataError(f"found by {ranks.rank()}")

    try:
        ranks.agreed(fail)
    except DataError as error:
        return ranks.agreed(lambda: ranks.rank()), str(error)


def lose(folder):
    """`ldnq quantize`, of which the second process is killed after the second layer."""
    note = FileJournal.note

    def last_words(self, state, generator):
        note(self, state, generator)
        if len(state.results) == 2 and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    FileJournal.note = last_words
    main([*command(folder), "--output", str(folder / "run")])


def command(folder):
    """Of a run over the pictures in `folder`."""
    return [
        "quantize", "--model", "two_processes:network", "--dataset", "folder", "--data-root", str(folder / "pictures"),
        "--image-size", "8", "--preset", "fast", "--batch-size", "8", "--device", "cpu", "--threads", "1",
    ]  # fmt: skip


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with runtime.together(CONFIG):
        results = work(folder) | {"agreed": agreed(), "size": ranks.size()}
        torch.save(results, folder / f"rank{ranks.rank()}.pt")
    lose(folder)
