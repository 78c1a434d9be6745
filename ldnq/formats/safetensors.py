"""One safetensors file: packed codes and scales, everything else as it is, and in its metadata what they are."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ldnq.checkpoints import write_safetensors
from ldnq.codebook import Codebook
from ldnq.errors import CheckpointError
from ldnq.formats.contents import Contents, check_version, describe, digest, float_tensors, reading
from ldnq.formats.registry import Format, Opened, formats
from ldnq.formats.torch import filled, refuse_folded
from ldnq.packing import pack, unpack
from ldnq.quantized import QuantizedModel, QuantizedWeight

FORMAT_VERSION = 1
# Of the metadata entry; files of float weights call theirs "ldnq".
KEY = "ldnq.quantized"
# What the two tensors of a quantized parameter are called after its name.
CODES, SCALE = ":codes", ":scale"


@formats.register("safetensors")
@dataclass(frozen=True)
class Safetensors(Format):
    """Packed codes and scales, for `ldnq.load`, or with `dequantized` a plain float state dict of the usual names."""

    dequantized: bool = False
    suffix: ClassVar[str] = ".safetensors"

    def write(self, model: QuantizedModel, path: Path, example: Tensor) -> None:
        """Write `model` to `path`."""
        if self.dequantized:
            refuse_folded(model)
            write_safetensors(path, model.module.state_dict(), {"format": "pt"})
        else:
            save(model, path)

    def open(self, path: Path, model: QuantizedModel) -> Opened:
        """The file in a copy of the network."""
        if self.dequantized:
            return filled(model, load_file(path))
        contents = read(path)
        return filled(model, contents.tensors | {name: w.dequantize() for name, w in contents.weights.items()})


def save(model: QuantizedModel, path: Path) -> None:
    """Write `model` to `path`: codes packed to about log2(levels) bits each, as in `ldnq.packing`."""
    others, header = float_tensors(model), describe(model)
    metadata = {
        "format_version": FORMAT_VERSION,
        "header": header,
        "weights": {
            name: {"shape": list(weight.codes.shape), "levels": list(weight.codebook.levels)}
            for name, weight in model.weights.items()
        },
        "sha256": digest(header, model.weights, others),
    }
    tensors = dict(others)
    for name, weight in model.weights.items():
        packed = pack(weight.codes.flatten().cpu().numpy(), weight.codebook.num_levels)
        tensors |= {name + CODES: torch.from_numpy(packed), name + SCALE: weight.scale}
    write_safetensors(path, tensors, {KEY: json.dumps(metadata)})


def read(path: Path) -> Contents:
    """Read what `save` wrote, without building the network.

    Raises `CheckpointError` where the file is not such a checkpoint or is damaged.
    """
    metadata, tensors = _read(path)
    check_version(path, metadata, FORMAT_VERSION)
    with reading(path):
        weights = {str(name): _weight(name, entry, tensors) for name, entry in metadata["weights"].items()}
        if digest(metadata["header"], weights, tensors) != metadata["sha256"]:
            raise CheckpointError("its checksum does not match")
        return Contents.parse(metadata["header"], weights, tensors)


def _weight(name: str, entry: Mapping[str, Any], tensors: dict[str, Tensor]) -> QuantizedWeight:
    codebook = Codebook(tuple(map(float, entry["levels"])))
    packed, scale = tensors.pop(name + CODES), tensors.pop(name + SCALE)
    codes = unpack(packed.numpy(), math.prod(entry["shape"]), codebook.num_levels)
    return QuantizedWeight(torch.from_numpy(codes).view(entry["shape"]), scale, codebook)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: expected a file written by 'ldnq export'")
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors file, or is damaged") from error
    if metadata is None:
        raise CheckpointError(f"{path} is not a quantized checkpoint of ldnq: expected one written by 'ldnq export'")
    return metadata, tensors
