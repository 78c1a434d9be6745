"""`ldnq evaluate`."""

import json
from pathlib import Path
from typing import Any

import click

from ldnq.commands import console, options
from ldnq.commands.config_file import config_option
from ldnq.config import RunConfig


@click.command("evaluate", short_help="Measure the accuracy of a network.")
@click.argument("checkpoint_or_model", metavar="[MODEL.h5]", required=False, type=click.Path(path_type=Path))
@config_option
@options.network_options
@options.data_options
@options.runtime_options
@options.process_options
@click.option("--bits", type=options.BIT_WIDTHS, help="Of a network of several widths those to measure. [default: all]")
@click.option("--kbits", type=options.BIT_WIDTHS, help="The same, of one whose widths are numbers of levels.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def evaluate_command(
    checkpoint_or_model: Path | None,
    bits: tuple[int, ...] | None,
    kbits: tuple[int, ...] | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure accuracy: of a quantized MODEL.h5, or of a float network by --model.

    \b
    ldnq evaluate results/RUN/model.h5 --dataset cifar10
    ldnq evaluate results/RUN/model.h5 --bits 1,2,4,8,32
    ldnq evaluate --model resnet20 --checkpoint resnet20.th --dataset cifar10
    """
    if checkpoint_or_model is None:
        options.require_model(values["model"])
        if options.typed(["bits", "kbits"]):
            raise click.UsageError("expected a MODEL.h5 with --bits or --kbits, got a float network")
    elif options.typed(["checkpoint", "num_classes"]):
        raise click.UsageError(
            f"{checkpoint_or_model} brings its own weights: leave out --checkpoint and --num-classes"
        )
    # Those in the configuration of a run are what it was asked for.
    asked = {name: some for name, some in (("bits", bits), ("kbits", kbits)) if some and options.typed([name])}
    config = RunConfig.from_options({"model": "", **{k: v for k, v in values.items() if v is not None}})
    with console.progress():
        from ldnq.measurement import evaluate_checkpoint, evaluate_network

        if checkpoint_or_model is None:
            metrics = evaluate_network(config)
        else:
            metrics = evaluate_checkpoint(checkpoint_or_model, config, **asked)
    if as_json:
        click.echo(json.dumps(metrics))
    elif "at" in metrics:
        rows = [(width, f"{found['top1']:.2f}", f"{found['top5']:.2f}") for width, found in metrics["at"].items()]
        console.table(rows, ("width", "top-1", "top-5"), f"{metrics['samples']:,} images of {metrics['dataset']}")
    else:
        console.table(
            [(name, f"{value:.2f}" if isinstance(value, float) else value) for name, value in metrics.items()]
        )
