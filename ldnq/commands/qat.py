"""`ldnq qat`."""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ldnq.commands import console, options
from ldnq.commands.config_file import config_option, goes_on, resume_option
from ldnq.commands.summary import summary
from ldnq.config import BITS, KBITS, SCALES, SUPERVISIONS, TRAINED, UPDATES, RunConfig, TrainedConfig

BIT_WIDTH = click.Choice([str(bits) for bits in BITS])


def _bits(name: str, what: str) -> Any:
    known = ", ".join(f"{method}: {own[name]}" for method, own in TRAINED.items() if name in own)
    return click.option(
        f"--{name}", type=BIT_WIDTH, callback=lambda ctx, param, value: value and int(value),
        help=f"Bits of {what}. [default: {known}]",
    )  # fmt: skip


@click.command("qat", short_help="Train a network with quantized weights and activations.")
@config_option
@options.network_options
@click.option(
    "--init", metavar="WHERE", help="pretrained, scratch, or a file: float weights, or what 'ldnq quantize' wrote. "
    "[default: pretrained where there are such weights]",
)  # fmt: skip
@options.data_options
@click.option(
    "--method", type=click.Choice(list(TRAINED)), default="dorefa", show_default=True,
    help="What is quantized, and how; see 'ldnq list methods'.",
)  # fmt: skip
@_bits("wbits", "weights; those of 16, of dorefa, are kept as floats")
@_bits("abits", "activations")
@_bits("gbits", "gradients")
@click.option(
    "--kbits", type=click.Choice([str(k) for k in KBITS]), callback=lambda ctx, param, value: value and int(value),
    help="Levels of pot: 3 is {0, ±α}, 5 adds ±2α, and so on. [default: 3]",
)  # fmt: skip
@click.option("--scale", type=click.Choice(SCALES), help="One α of pot a layer, or a channel. [default: layer]")
@click.option(
    "--input-scale/--no-input-scale", default=None, help="Scale outputs of xnor by the magnitude of their inputs."
)
@click.option("--bits", type=options.BIT_WIDTHS, help="Widths of any-precision, 1 to 8 and 32. [default: 1,2,4,8,32]")
@click.option(
    "--supervision", type=click.Choice(SUPERVISIONS),
    help="What narrower widths of any-precision learn from: labels, the widest, the next wider. [default: recursive]",
)  # fmt: skip
@click.option(
    "--calibrate-bits", type=options.BIT_WIDTHS,
    help="Widths of any-precision that are not trained: their batch norms are calibrated on a sample.",
)  # fmt: skip
@click.option(
    "--update", type=click.Choice(UPDATES), default=UPDATES[0], show_default=True,
    help="The weights that the optimizer steps: float ones, or those that are quantized already.",
)  # fmt: skip
@click.option("--skip", multiple=True, metavar="NAME", help="Keep layers of this name (a glob) float. Repeatable.")
@click.option(
    "--keep-first-last/--quantize-first-last", default=True, show_default=True,
    help="Keep the first and the last layer float.",
)  # fmt: skip
@options.training_options
@options.teacher_options
@options.training_runtime_options
@options.process_options
@options.sync_option
@options.tensorboard_option
@options.output_option
@resume_option
def qat_command(
    output: Path | None,
    resume: Path | None,
    init: str | None,
    teacher: Path | None,
    teacher_model: str | None,
    curves: bool,
    **values: Any,
) -> None:
    """Train a network with quantized weights and activations on labelled images: quantization-aware training.

    \b
    ldnq qat --model resnet20 --dataset digits --method dorefa --wbits 4 --abits 4 --epochs 10
    ldnq qat --model nin --method xnor --lr 0.01
    ldnq qat --model preact-resnet20 --method any-precision --bits 1,2,4,8,32 --optimizer adam --lr 0.001
    ldnq qat --model resnet20 --method pot --kbits 3 --init results/RUN/model.h5
    ldnq qat --resume results/RUN

    The folder also keeps the curves: training.csv, a row an epoch, and curves.svg.
    """
    folder = goes_on(resume, output)
    if resume and (resume / "metrics.json").exists():
        click.echo(f"the run in {resume} is finished: nothing to do")
        return
    options.require_model(values["model"])
    if teacher_model and not teacher:
        raise click.UsageError("expected --teacher FILE with --teacher-model, got no weights")
    config = RunConfig.from_options({name: value for name, value in values.items() if name not in _OWN})
    quantization = TrainedConfig(**{name: values[name] for name in _OWN})
    recipe = options.training_recipe(values)
    command = shlex.join(["ldnq", *options.words("qat")])
    with console.progress():
        from ldnq.qat import QuantizedRun, train

        wanted = QuantizedRun(config, quantization, recipe, folder, init, teacher, teacher_model, curves, command)
        result = train(wanted)
    console.table(summary(result.metrics) + [("report", str(result.folder / "report.html"))])


_OWN = [entry.name for entry in fields(TrainedConfig)]
