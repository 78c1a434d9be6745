"""What of a run changes when it is repeated, and when its thread count or device does.

    pip install .
    python benchmarks/reproducibility.py

writes `reproducibility.md`: ResNet-20 on the digits at three levels, preset fast, each run in a process of its own and
compared with the first. Where there is a GPU it is compared as well.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from rows import publish, quick_option

from ldnq import formats
from ldnq.formats.contents import Contents

RUN = ["--model", "resnet20", "--dataset", "digits", "--preset", "fast", "--kbits", "3"]
ONE = ["--device", "cpu", "--threads", "1"]
OTHERS = {"1 thread, once more": ONE, "2 threads": [*ONE[:3], "2"], "GPU": ["--device", "cuda"]}


@click.command()
@quick_option
def main(quick: bool) -> None:
    """Quantize, compare and write the table."""
    lines = [
        "| compared with 1 thread | codes that differ | largest difference of a scale | top-1, was |",
        "|---|---|---|---|",
    ]
    with TemporaryDirectory() as folder:
        few = ["--samples", "64", "--views", "0"] if quick else []
        first, was = quantize(Path(folder) / "first", ONE + few)
        for number, (name, options) in enumerate(OTHERS.items()):
            if name == "GPU" and not torch.cuda.is_available():
                continue
            other, top1 = quantize(Path(folder) / str(number), options + few)
            codes, scale = differences(first, other)
            lines.append(f"| {name} | {codes:.3%} | {scale:.2%} | {top1:.2f}, {was:.2f} |")
            click.echo(lines[-1])
    publish("reproducibility.md", "\n".join(lines) + "\n")


def quantize(output: Path, options: list[str]) -> tuple[Contents, float]:
    """What a run has made, and its accuracy in percent."""
    subprocess.run([sys.executable, "-m", "ldnq", "quantize", *RUN, *options, "--output", output], check=True)
    return formats.read(output / "model.h5"), json.loads((output / "metrics.json").read_text())["quantized_top1"]


def differences(one: Contents, two: Contents) -> tuple[float, float]:
    """The share of codes that differ, and the largest relative difference of two scales."""
    pairs = [(weight, two.weights[name]) for name, weight in one.weights.items()]
    codes = sum(int((a.codes != b.codes).sum()) for a, b in pairs) / sum(a.codes.numel() for a, _ in pairs)
    return codes, max(float((b.scale / a.scale - 1).abs().max()) for a, b in pairs)


if __name__ == "__main__":
    main()
