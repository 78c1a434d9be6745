"""What the memory layout, the number of threads and `torch.compile` are worth on a processor.

    pip install .
    python benchmarks/settings.py

writes `settings.md`: passes and gradient steps of ResNet-20 (128 random images of 32 pixels) and ResNet-18 (16 of 224),
as multiples of one thread in channels-last memory. Each setting runs in a process of its own, and all of them in turns;
of the turns the fastest counts.
"""

import json
import os
import subprocess
import sys
import time
from itertools import product

import click
import torch
from rows import publish, quick_option

from ldnq.models import models

# Images and pixels.
NETWORKS = {"resnet20": (128, 32), "resnet18": (16, 224)}
JOBS = "pass", "gradient step"
# By the words of the table: threads, channels-last memory, compiled; the first is the unit.
SETTINGS = {
    "one thread, channels-last": (1, True, False),
    "one thread, contiguous": (1, False, False),
    "one thread, channels-last, compiled": (1, True, True),
    "two threads, channels-last": (2, True, False),
}
TURNS, REPEATS = 3, 5


@click.command()
@quick_option
@click.option("--one", hidden=True, help="A setting to measure in this process.")
def main(quick: bool, one: str | None) -> None:
    """Measure, and write the table."""
    if one:
        click.echo(json.dumps(measured(*SETTINGS[one])))
        return
    turns = [{name: _in_a_process(name) for name in SETTINGS} for _ in range(1 if quick else TURNS)]
    columns = [f"{model}, {job}" for model, job in product(NETWORKS, JOBS)]
    lines = [f"| setting | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    best = {name: [min(values) for values in zip(*(turn[name] for turn in turns))] for name in SETTINGS}
    unit = next(iter(best.values()))
    for name, seconds in best.items():
        lines.append(f"| {name} | {' | '.join(f'{taken / one:.2f}' for taken, one in zip(seconds, unit))} |")
    click.echo("\n".join(lines))
    publish("settings.md", "\n".join(lines) + "\n")


def measured(threads: int, channels_last: bool, compiled: bool) -> list[float]:
    """Seconds of every job of every network."""
    torch.set_num_threads(threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    seconds = []
    for model, (images, pixels) in NETWORKS.items():
        network = models.get(model).build(num_classes=10).to(memory_format=layout)
        x = torch.randn(images, 3, pixels, pixels).contiguous(memory_format=layout)
        forward = torch.compile(network) if compiled else network
        for job in JOBS:
            network.train(job != "pass")
            with torch.set_grad_enabled(job != "pass"):
                seconds.append(min(_run(forward, x) for _ in range(REPEATS)))
    return seconds


def _run(forward: torch.nn.Module, x: torch.Tensor) -> float:
    started = time.perf_counter()
    outputs = forward(x)
    if outputs.requires_grad:
        outputs.square().mean().backward()
    return time.perf_counter() - started


def _in_a_process(name: str) -> list[float]:
    command = [sys.executable, __file__, "--one", name]
    # What the environment says of threads is decided here.
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(found.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
