"""`ldnq quantize`."""

import shlex
from pathlib import Path
from typing import Any

import click

from ldnq.commands import console, options
from ldnq.commands.completion import complete
from ldnq.commands.config_file import config_option, goes_on, resume_option
from ldnq.commands.summary import summary
from ldnq.config import AUTO, KBITS, METHODS, RANGES, RunConfig


@click.command("quantize", short_help="Quantize a trained network with a few of its images.")
@config_option
@options.network_options
@options.data_options
@options.calibration_options
@options.calibration_file_option
@options.synthesis_options
@click.option(
    "--preset", default="balanced", show_default=True, shell_complete=complete("presets"),
    help="What is done; see 'ldnq list presets'.",
)  # fmt: skip
@click.option(
    "--method", type=click.Choice(METHODS), default="ldnq", show_default=True,
    help="A network for one number of levels, or one for several.",
)  # fmt: skip
@click.option(
    "--kbits", type=options.OneOrSeveral([*(str(k) for k in KBITS), AUTO]), default="3", show_default=True,
    callback=options.parse_kbits,
    help="Number of levels: 3 is {0, ±α}, 5 adds ±2α, 7 ±4α, 9 ±8α, 11 ±16α. auto: what suits each layer best. "
    "Several with commas, of any-precision, which keeps them in one checkpoint.",
)  # fmt: skip
@click.option(
    "--kbits-for", multiple=True, metavar="PATTERN=K", callback=options.parse_kbits_for,
    help="Levels of the layers of this name (a glob), also beside auto; the last one that fits counts. Repeatable.",
)  # fmt: skip
@click.option("--target-bits", type=float, metavar="BITS", help="Of a weight on average, scales counted, for auto.")
@options.layer_options
@click.option("--abits", type=click.IntRange(4, 8), help="Bits of activations, for integer runtimes. [default: float]")
@click.option(
    "--ranges", type=click.Choice(RANGES), default=RANGES[0], show_default=True, help="How --abits finds their ranges."
)
@click.option("--training/--no-training", default=True, show_default=True, help="Allow gradient steps.")
@click.option("--cascade-epochs", type=click.IntRange(0), help="At most so many after each layer. [default: preset's]")
@click.option("--cascade-lr", type=float, help="Learning rate of the cascade update. [default: the preset's]")
@click.option("--block-steps", type=click.IntRange(0), help="Of each residual block. [default: the preset's]")
@click.option("--distillation-steps", type=click.IntRange(0), help="Of the whole network. [default: the preset's]")
@options.runtime_options
@options.memory_option
@options.process_options
@options.tensorboard_option
@options.output_option
@resume_option
def quantize_command(output: Path | None, resume: Path | None, curves: bool, **values: Any) -> None:
    """Quantize a trained network layer by layer with a small sample of its training images.

    \b
    ldnq quantize --model resnet20 --dataset digits --kbits 3
    ldnq quantize --model resnet18 --kbits 5
    ldnq quantize --model resnet20 --dataset digits --kbits 3 --kbits-for 'layer1.*=5' --kbits-for linear=9
    ldnq quantize --model resnet20 --dataset digits --kbits auto --target-bits 2.0
    ldnq quantize --model resnet20 --dataset digits --method any-precision --kbits 3,5,7,9,11
    ldnq quantize --resume results/RUN
    """
    folder = goes_on(resume, output)
    if resume and (resume / "metrics.json").exists():
        click.echo(f"the run in {resume} is finished: nothing to do")
        return
    options.require_model(values["model"])
    options.settle_calibration(values)
    options.settle_levels(values)
    config = RunConfig.from_options(values)
    with console.progress():
        from ldnq.pipeline import run

        result = run(config, folder, shlex.join(["ldnq", *options.words("quantize")]), curves)
    if config.recipe.kbits == AUTO:
        rows = [(name, f"{w.codes.numel():,}", w.codebook.num_levels) for name, w in result.model.weights.items()]
        console.table(rows, ("parameter", "weights", "levels"), "Levels chosen")
    console.table(summary(result.metrics) + [("report", str(result.folder / "report.html"))])
