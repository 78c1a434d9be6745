"""`ldnq export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ldnq.commands import config_file, console, options
from ldnq.commands.completion import complete
from ldnq.config import DataConfig, NetworkConfig

if TYPE_CHECKING:
    from ldnq.export import Exported
    from ldnq.quantized import QuantizedModel


@click.command("export", short_help="Write a file for another runtime, and check it there.")
@click.argument("checkpoint", metavar="RUN_OR_FILE", type=click.Path(path_type=Path))
@click.option(
    "--format", "name", default="onnx", show_default=True, shell_complete=complete("formats"),
    help="See 'ldnq list formats'.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="[default: beside the checkpoint]"
)
@click.option("--weight-type", default="int8", show_default=True, help="Of onnx: int8, int4, int2 or float.")
@click.option("--dequantized", is_flag=True, help="Of safetensors: a plain float state dict.")
@click.option("--bits", type=int, metavar="N", help="The width, of a network of several. [default: the widest]")
@click.option("--kbits", type=int, metavar="K", help="The same, of one whose widths are numbers of levels.")
@click.option("--fold-batchnorm", is_flag=True, help="Make batch norms part of the layers before them.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Run the file and compare its outputs.")
@options.model_option
@options.model_args_option
@click.option(
    "--dataset", metavar="NAME", shell_complete=complete("datasets"),
    help="To check with; the checkpoint's own if left out.",
)  # fmt: skip
@click.option(
    "--data-root", type=click.Path(), help="The dataset's folder; else $LDNQ_DATA/<dataset> or data/<dataset>."
)
@click.option("--image-size", type=click.IntRange(8, 4096), metavar="PIXELS", help="Where the checkpoint has none.")
def export_command(
    checkpoint: Path,
    name: str,
    output: Path | None,
    weight_type: str,
    dequantized: bool,
    bits: int | None,
    kbits: int | None,
    fold_batchnorm: bool,
    verify: bool,
    model: str | None,
    model_args: dict,
    dataset: str | None,
    data_root: str | None,
    image_size: int | None,
) -> None:
    """Write a quantized network as a file that other runtimes run, and check it in its own runtime.

    \b
    ldnq export results/RUN --format onnx --output model.onnx
    ldnq export results/RUN/model.h5 --format torch
    ldnq export results/RUN/model.h5 --bits 4
    """
    chosen = _options(name, weight_type=weight_type, dequantized=dequantized)
    if model_args and not model:
        raise click.UsageError("expected --model with --model-arg")
    with console.progress():
        from ldnq.export import export_checkpoint
        from ldnq.formats import formats

        form = formats.get(name)(**chosen)
        output = output or (checkpoint / "model" if checkpoint.is_dir() else checkpoint).with_suffix(form.suffix)
        network, exported = export_checkpoint(
            checkpoint,
            output,
            form,
            DataConfig(dataset, data_root or _data_root_of(checkpoint), image_size=image_size),
            NetworkConfig(model, model_args) if model else None,
            fold_batchnorm=fold_batchnorm,
            verify=verify,
            bits=bits,
            kbits=kbits,
        )
    console.table(_summary(network, exported, output) + form.remarks(output, network))
    console.table(_floats(network), ("stays float", "why"))


def _options(name: str, **values: Any) -> dict[str, Any]:
    """Those of the format; raises `click.UsageError` where another one's was given."""
    own = {"onnx": {"weight_type"}, "safetensors": {"dequantized"}}
    context = click.get_current_context()
    for option in values.keys() - own.get(name, set()):
        if context.get_parameter_source(option) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{option.replace('_', '-')} is not for --format {name}")
    return {option: values[option] for option in own.get(name, set())}


def _data_root_of(run: Path) -> str | None:
    """Where the images of a run were, if they still are."""
    config = run / "config.json"
    root = config_file.read(config).get("data_root") if config.is_file() else None
    return root if root and Path(root).is_dir() else None


def _summary(network: "QuantizedModel", exported: "Exported", output: Path) -> list[tuple[str, str]]:
    ratio = network.float_bytes / exported.bytes
    change = f"{ratio:.1f}x smaller" if ratio >= 1 else f"{1 / ratio:.1f}x larger"
    checked = f"weights bit for bit, classes of {exported.agreed} of {exported.checked} images"
    return [
        ("file", str(output)),
        ("size", f"{exported.bytes:,} bytes, {change} than {network.float_bytes:,}"),
        ("bits a quantized weight", f"{exported.bits_per_weight:.2f}" if network.weights else "none is quantized"),
        ("checked", checked if exported.checked else "no"),
    ]


def _floats(network: "QuantizedModel") -> list[tuple[str, str]]:
    """What stays float in the file, and why."""
    left = dict(network.provenance.get("left_float", {}))
    state = network.module.state_dict()
    others = [name for name in state if name not in network.weights and name.rpartition(".")[0] not in left]
    count = sum(state[name].numel() for name in others)
    what = "biases and buffers" if network.folded else "batch norms, biases and buffers"
    return [*left.items(), (f"{count:,} numbers more", what)]
