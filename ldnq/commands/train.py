"""`ldnq train`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ldnq.commands import console, options
from ldnq.commands.config_file import config_option, goes_on, read, resume_option
from ldnq.config import RunConfig
from ldnq.errors import UsageError


@click.command("train", short_help="Train a float network to start from.")
@config_option
@options.model_option
@options.model_args_option
@click.option("--num-classes", type=click.IntRange(2), help="Outputs of the network; the dataset's classes otherwise.")
@click.option(
    "--init", type=click.Path(path_type=Path), metavar="FILE",
    help="Weights to start from; a last layer of another number of classes starts anew. Random otherwise.",
)  # fmt: skip
@options.data_options
@options.training_options
@options.teacher_options
@click.option("--half", is_flag=True, help="Store the weights as float16.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the network first; needs a C++ compiler.")
@options.training_runtime_options
@options.process_options
@options.sync_option
@options.tensorboard_option
@options.output_option
@resume_option
def train_command(
    output: Path | None,
    resume: Path | None,
    init: Path | None,
    teacher: Path | None,
    teacher_model: str | None,
    half: bool,
    compiled: bool,
    curves: bool,
    **values: Any,
) -> None:
    """Train a float network, as a start for quantization. An interrupted run goes on when started again.

    \b
    ldnq train --model resnet20 --dataset cifar10 --epochs 40 --output results/resnet20
    ldnq train --model resnet18 --dataset imagenette --init resnet18-f37072fd.pth --epochs 10 --lr 0.01
    ldnq train --resume results/resnet20

    The folder keeps the curves: training.csv, a row an epoch, and curves.svg.
    """
    folder = goes_on(resume, output)
    options.require_model(values["model"])
    if teacher_model and not teacher:
        raise click.UsageError("expected --teacher FILE with --teacher-model, got no weights")
    config = RunConfig.from_options(values)
    recipe = options.training_recipe(values)
    with console.progress():
        from ldnq.baseline import Baseline, train

        baseline = Baseline(
            config, recipe, folder, init, half, compiled, curves, _command(resume), teacher, teacher_model
        )
        if resume and baseline.weights.exists():
            click.echo(f"the run in {resume} is finished: nothing to do")
            return
        card = train(baseline)
    rows = [("weights", str(baseline.weights))]
    if card["top1"] is not None:
        rows.insert(0, ("top-1 / top-5", f"{card['top1']:.2f}% / {card['top5']:.2f}%"))
    console.table(rows)


def _command(resume: Path | None) -> str:
    """The command that began the run."""
    if resume is None:
        return shlex.join(["ldnq", *_without_folders(options.words("train"))])
    found = read(resume / "config.json")
    if not {"command", "epochs"} <= found.keys():
        raise UsageError(f"expected a run of 'ldnq train' in {resume}, found another: use 'ldnq quantize --resume'")
    return str(found["command"])


def _without_folders(words: Sequence[str]) -> list[str]:
    """The words of the command as a reader of the model card can repeat it, without folders of this machine."""
    kept, folders = [], ("--data-root", "--output", "-o")
    rest = iter(words)
    for word in rest:
        if word in folders:
            next(rest)
        elif not word.startswith(tuple(f"{folder}=" for folder in folders)):
            kept.append(word)
    return kept
