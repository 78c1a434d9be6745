"""The mean of networks that one training has passed through: better than any of them.

    python pretrained/average.py --data-root DIR results/first.safetensors results/second.safetensors OUTPUT.safetensors

The weights are averaged, and batch norm takes the statistics of 5,000 augmented training images (Izmailov et al.,
"Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018).
"""

import shlex
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from ldnq import checkpoints
from ldnq.augmentation import Augmentation
from ldnq.config import RunConfig
from ldnq.data import load_data, resolve_dataset
from ldnq.datasets.images import Prepared, in_memory
from ldnq.measurement import evaluate_network
from ldnq.network import build
from ldnq.preprocessing import Preprocessing
from ldnq.recalibration import recalibrate

IMAGES = 5000


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--data-root", required=True, help="The folder of the images that they were trained on.")
def main(files: tuple[Path, ...], output: Path, data_root: str) -> None:
    """Write the mean of the networks in FILES to OUTPUT, measured."""
    networks = [checkpoints.read(file) for file in files]
    card = networks[-1][1]
    module = build(card["model"], card["model_args"])
    module.load_state_dict(mean([tensors for tensors, _ in networks]))
    config = RunConfig.from_options(
        {"model": card["model"], "dataset": card["dataset"], "data_root": data_root, "checkpoint": str(output)}
    )
    recalibrate(module, training_batches(config, Preprocessing.from_dict(card["preprocessing"])))
    card["command"] = shlex.join(["python", "pretrained/average.py", *map(str, files), str(output)])
    checkpoints.write(output, module.state_dict(), card)
    found = evaluate_network(config)
    card |= {"top1": found["top1"], "top5": found["top5"], "test_images": found["samples"]}
    checkpoints.write(output, module.state_dict(), card)
    click.echo(f"{output}: {found['top1']:.2f}%")


def mean(networks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of tensors called alike; whole numbers are the last network's."""
    return {
        name: torch.stack([tensors[name] for tensors in networks]).mean(0) if last.is_floating_point() else last
        for name, last in networks[-1].items()
    }


def training_batches(config: RunConfig, preprocessing: Preprocessing):
    """Augmented training images, ready for the network."""
    dataset = resolve_dataset(config.data.dataset, "", config.network.model)
    train = load_data(config.data, dataset).train
    chosen = np.random.default_rng(0).choice(len(train), min(IMAGES, len(train)), replace=False)
    images, _ = in_memory(Prepared(train, preprocessing, chosen))
    augmentation = Augmentation(preprocessing.image_size, dataset.flip)
    generator = torch.Generator().manual_seed(0)
    for batch in images.split(250):
        yield preprocessing.normalize(augmentation(batch, generator))


if __name__ == "__main__":
    main()
