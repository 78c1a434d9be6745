"""`ldnq inspect`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldnq.commands import console

if TYPE_CHECKING:
    from ldnq.quantized import QuantizedWeight

# Of what a checkpoint says of its making.
SHOWN = (
    "dataset", "method", "kbits", "wbits", "abits", "supervision", "solver", "scale", "calibration_samples",
    "train_images", "epochs", "teacher_top1", "quantized_top1",
)  # fmt: skip


@click.command("inspect", short_help="Show what a quantized checkpoint holds.")
@click.argument("file", metavar="MODEL.h5", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def inspect_command(file: Path, as_json: bool) -> None:
    """Show what a quantized checkpoint holds: its layers, levels, scales and sizes.

    \b
    ldnq inspect results/RUN/model.h5
    """
    with console.progress():
        from ldnq import formats

        model_file = formats.read(file)
        widths = model_file.precisions
        rows = [_row(name, weight) for name, weight in model_file.weights.items()]
    summary = {
        "network": model_file.model or "the caller's own",
        "bytes": file.stat().st_size,
        **({"widths": f"{', '.join(map(str, widths.widths))} {widths.unit}"} if widths else {}),
        "quantized_parameters": sum(w.codes.numel() for w in model_file.weights.values()),
        "float_parameters": sum(t.numel() for t in model_file.tensors.values()),
    }
    provenance = {name: model_file.provenance[name] for name in SHOWN if model_file.provenance.get(name) is not None}
    if as_json:
        columns = ("name", "shape", "levels", "scale_min", "scale_max", "zero_fraction")
        click.echo(json.dumps(summary | provenance | {"layers": [dict(zip(columns, row)) for row in rows]}))
        return
    console.table(
        [
            (name, shape, levels, f"{low:.5g}", f"{high:.5g}", f"{zero:.3f}")
            for name, shape, levels, low, high, zero in rows
        ],
        ("parameter", "shape", "levels", "scale min", "scale max", "zeros"),
    )
    console.table([(name.replace("_", " "), _text(value)) for name, value in (summary | provenance).items()])


def _text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _row(name: str, weight: "QuantizedWeight") -> tuple[str, str, int, float, float, float]:
    shape = "x".join(map(str, weight.codes.shape))
    low, high = float(weight.scale.min()), float(weight.scale.max())
    return name, shape, weight.codebook.num_levels, low, high, weight.zero_fraction
