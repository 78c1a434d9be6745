"""`ldnq complexity`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ldnq.commands import console, options
from ldnq.commands.completion import complete

if TYPE_CHECKING:
    from ldnq.complexity import LayerComplexity

COLUMNS = ("layer", "kind", "parameters", "multiply-accumulates", "weight bits", "input bits", "operations")


@click.command("complexity", short_help="Count multiply-accumulates and parameters by layer.")
@click.argument("target", metavar="MODEL", shell_complete=complete("models"))
@options.model_args_option
@click.option("--num-classes", type=click.IntRange(2), help="Outputs of the network.")
@click.option("--image-size", type=click.IntRange(8, 4096), metavar="PIXELS", help="Side of the network's input.")
@click.option(
    "--model", "own", metavar="NAME", help="Of a checkpoint that does not name its network: package.module:factory."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def complexity_command(
    target: str, model_args: dict[str, Any], num_classes: int | None, image_size: int | None, own: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Count the multiply-accumulates of one image and the parameters of MODEL, layer by layer, and which are of float
    numbers, of k bits or binary. MODEL is a network by name, a checkpoint or a run's folder.

    \b
    ldnq complexity nin
    ldnq complexity resnet20 --model-arg width=32
    ldnq complexity results/RUN
    """
    with console.progress():
        from ldnq.appraisal import complexity_of
        from ldnq.complexity import totals

        layers = complexity_of(target, model_args, num_classes, image_size, own)
    found = totals(layers)
    if as_json:
        rows = [asdict(layer) | {"operation": layer.operation} for layer in layers]
        click.echo(json.dumps(found | {"layers": rows}))
        return
    console.table(_rows(layers), COLUMNS)
    console.table(_summary(found))


def _rows(layers: "list[LayerComplexity]") -> list[tuple]:
    """Modules that multiply, and the parameters of all others together."""
    rows: list[tuple] = [
        (
            layer.name or "(the network)",
            layer.kind,
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            _bits(layer.weight_bits),
            _bits(layer.activation_bits),
            layer.operation,
        )
        for layer in layers
        if layer.macs
    ]
    others = sum(layer.parameters for layer in layers if not layer.macs)
    return [*rows, ("all others", "", f"{others:,}", "", "", "", "")] if others else rows


def _bits(bits: float) -> str:
    return f"{bits:.3g}"


def _summary(found: dict[str, int]) -> list[tuple[str, str]]:
    from ldnq.complexity import shortened

    names = ("float", "k-bit", "binary")
    parts = [(name, found[f"{name.replace('-', '')}_macs"]) for name in names]
    return [
        ("parameters", shortened(found["parameters"])),
        ("multiply-accumulates", shortened(found["macs"])),
        *((f"  of them {name}", shortened(macs)) for name, macs in parts if macs),
        ("with bias, batch norm, activation, pooling", shortened(found["macs"] + found["elementwise"])),
    ]
