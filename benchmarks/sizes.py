"""Bytes of every format: three networks, every codebook.

    pip install ".[onnx]"
    python benchmarks/sizes.py

writes `sizes.md`. Sizes do not depend on how codes were found, so weights are rounded to the nearest level, one scale a
layer, those of resnet50 from random ones. Every file is loaded in its own runtime and compared with the network.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from rows import publish, quick_option

from ldnq.checkpoints import load_into, read
from ldnq.codebook import Codebook
from ldnq.config import KBITS
from ldnq.export import export
from ldnq.formats import Format, formats, h5
from ldnq.graph import find_layers
from ldnq.network import build, shipped_folders
from ldnq.problem import project
from ldnq.quantized import QuantizedModel, QuantizedWeight

NETWORKS = {
    "resnet20": ({"num_classes": 10}, 32, "resnet20-cifar10"),
    "resnet18": ({"num_classes": 10}, 128, "resnet18-imagenette"),
    "resnet50": ({"num_classes": 1000}, 128, None),
}
FORMATS: dict[str, Format] = {
    "safetensors": formats.get("safetensors")(),
    "ONNX int8": formats.get("onnx")(),
    "ONNX int4": formats.get("onnx")(weight_type="int4"),
    "ONNX int2": formats.get("onnx")(weight_type="int2"),
}
# The largest number of levels that a type holds.
MOST = {"ONNX int4": 7, "ONNX int2": 3}


@click.command()
@quick_option
def main(quick: bool) -> None:
    """Write every file and the table."""
    columns = ["float state dict", "h5", *FORMATS]
    lines = [
        f"| network | levels | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for name in list(NETWORKS)[: 1 if quick else None]:
        for kbits in KBITS[: 2 if quick else None]:
            lines.append(f"| {name} | {kbits} | {' | '.join(row(name, kbits))} |")
            click.echo(lines[-1])
    publish("sizes.md", "\n".join(lines) + "\n")


def row(name: str, kbits: int) -> Iterator[str]:
    """Bytes of every format, and how many times smaller than the state dict."""
    model = quantized(name, kbits)
    images = torch.randn(4, 3, *[NETWORKS[name][1]] * 2, generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        whole = export(model, path, formats.get("torch")(), images).bytes
        yield f"{whole:,}"
        yield _ratio(h5.save(model, path)["total"], whole)
        for column, form in FORMATS.items():
            fits = kbits <= MOST.get(column, kbits)
            yield _ratio(export(model, path, form, images).bytes, whole) if fits else ""


@torch.no_grad()
def quantized(name: str, kbits: int) -> QuantizedModel:
    """A network with every weight on the nearest level."""
    arguments, size, weights_name = NETWORKS[name]
    module, codebook, weights = build(name, arguments), Codebook.power_of_two(kbits), {}
    if weights_name:
        path = next(p for f in shipped_folders() if (p := f / f"{weights_name}.safetensors").is_file())
        load_into(module, read(path)[0], str(path))
    for layer in find_layers(module, torch.zeros(2, 3, size, size))[0]:
        parameter = module.get_parameter(layer.weight_name)
        codes, scale = project(layer.to_matrix(parameter.double()), codebook, per_channel=False)
        weights[layer.weight_name] = QuantizedWeight(layer.to_weight(codes), scale, codebook)
        parameter.copy_(weights[layer.weight_name].dequantize())
    return QuantizedModel(module, weights, name, arguments)


def _ratio(size: int, whole: int) -> str:
    return f"{size:,} ({whole / size:.1f}x)"


if __name__ == "__main__":
    main()
