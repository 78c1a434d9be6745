"""Memory that `ldnq quantize --no-training` takes, by the number of calibration images.

    pip install .
    python benchmarks/memory.py

writes `memory.md`: ResNet-50 with random weights at 224 pixels, preset fast on the processor, images of noise, each
size in a process of its own whose highest resident set is measured. Codes are rounded to nearest: that solver takes
least time, and the others hold no more than a few matrices of one layer.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch
from PIL import Image
from rows import publish, quick_option

from ldnq.network import build

MODEL, PIXELS, SIZES = "resnet50", 224, (50, 100, 200)
QUICK_MODEL, QUICK_PIXELS, QUICK_SIZES = "resnet20", 32, (50, 200)


@click.command()
@quick_option
@click.argument("sizes", type=int, nargs=-1)
@click.option("--threads", default=1, show_default=True)
def main(quick: bool, sizes: tuple[int, ...], threads: int) -> None:
    """Quantize with so many images, 50, 100 and 200 where none are given, and write the table."""
    lines = ["| calibration images | highest resident set, MiB |", "|---|---|"]
    with TemporaryDirectory() as folder:
        model, pixels, usual = (QUICK_MODEL, QUICK_PIXELS, QUICK_SIZES) if quick else (MODEL, PIXELS, SIZES)
        write_inputs(Path(folder), model, pixels, max(sizes := sizes or usual))
        for size in sizes:
            lines.append(f"| {size} | {quantize(Path(folder), model, pixels, size, threads):,} |")
            click.echo(lines[-1])
    publish("memory.md", "\n".join(lines) + "\n")


def write_inputs(folder: Path, model: str, pixels: int, images: int) -> None:
    """Weights as `weights.pt`, and images as `images/`, none to test with: the network has learned nothing."""
    torch.manual_seed(0)
    torch.save(build(model, {"num_classes": 10}).state_dict(), folder / "weights.pt")
    classes = [folder / "images" / "train" / str(number) for number in range(10)]
    for path in classes:
        path.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(images):
        small = noise.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        Image.fromarray(small).resize((pixels, pixels)).save(classes[number % 10] / f"{number:04}.png")


def quantize(folder: Path, model: str, pixels: int, images: int, threads: int) -> int:
    """The highest resident set of a run with so many images, in MiB."""
    command = [
        sys.executable, "-m", "ldnq", "quantize", "--model", model, "--checkpoint", folder / "weights.pt",
        "--num-classes", 10, "--dataset", "folder", "--data-root", folder / "images", "--samples", images,
        "--image-size", pixels, "--preset", "fast", "--solver", "nearest", "--views", 0, "--no-training",
        "--device", "cpu", "--threads", threads, "--output", folder / f"run-{images}",
    ]  # fmt: skip
    process = subprocess.Popen([str(word) for word in command], cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise click.ClickException(f"the run with {images} images ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss >> 10


if __name__ == "__main__":
    main()
