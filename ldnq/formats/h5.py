"""The canonical checkpoint: one HDF5 file of five flat datasets.

`header` is zlib-compressed JSON (version, network, preprocessing, provenance, an index of parameters and tensors, and
the SHA-256 of each other dataset); `codes` holds the packed codes of all quantized parameters one after the other,
`scales` and `levels` their float32 scales and codebooks, `tensors` the raw little-endian bytes of everything else.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from ldnq.codebook import Codebook
from ldnq.errors import CheckpointError, LdnqError, shorten
from ldnq.files import replacing
from ldnq.network import build
from ldnq.packing import pack, packed_size, unpack
from ldnq.preprocessing import Preprocessing
from ldnq.quantized import QuantizedModel, QuantizedWeight

FORMAT_VERSION = 1
MAX_HEADER = 64 << 20
BLOCKS = ("codes", "scales", "levels", "tensors")
DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def save(model: QuantizedModel, path: str | Path) -> dict[str, int]:
    """Write `model` to `path`; returns the bytes of codes, scales, tensors, overhead (the rest) and the whole file."""
    path = Path(path)
    codebooks = list(dict.fromkeys(weight.codebook for weight in model.weights.values()))
    others = {name: tensor for name, tensor in model.module.state_dict().items() if name not in model.weights}
    blocks = {
        "codes": _join(pack(w.codes.flatten().cpu().numpy(), w.codebook.num_levels) for w in model.weights.values()),
        "scales": _join(w.scale.cpu().numpy().astype("<f4") for w in model.weights.values()),
        "levels": _join(np.array(codebook.levels, "<f4") for codebook in codebooks),
        "tensors": _join(_to_bytes(tensor) for tensor in others.values()),
    }
    header = {
        "format_version": FORMAT_VERSION,
        "model": model.model,
        "model_args": dict(model.model_args),
        "preprocessing": model.preprocessing and model.preprocessing.to_dict(),
        "class_names": list(model.class_names),
        "provenance": dict(model.provenance),
        "codebooks": [codebook.num_levels for codebook in codebooks],
        "weights": [
            [name, list(w.codes.shape), w.scale.numel(), codebooks.index(w.codebook)]
            for name, w in model.weights.items()
        ],
        "tensors": [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in others.items()],
        "sha256": {name: hashlib.sha256(block.tobytes()).hexdigest() for name, block in blocks.items()},
    }
    with replacing(path) as temporary:
        with h5py.File(temporary, "w", libver="latest") as file:
            file["header"] = np.frombuffer(zlib.compress(json.dumps(header).encode(), 9), np.uint8)
            for name, block in blocks.items():
                file[name] = block
        total = temporary.stat().st_size
    sizes = {name: blocks[name].nbytes for name in ("codes", "scales", "tensors")}
    return sizes | {"overhead": total - sum(sizes.values()), "total": total}


@dataclass(frozen=True)
class Contents:
    """A checkpoint taken apart: quantized `weights`, all other `tensors`, and what it says of its network."""

    weights: dict[str, QuantizedWeight]
    tensors: dict[str, Tensor]
    model: str
    model_args: dict[str, Any]
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...]
    provenance: dict[str, Any]


def read(path: str | Path) -> Contents:
    """Read what `save` wrote, without building the network.

    Nothing in the file is executed or imported. Raises `CheckpointError` where the file is not such a checkpoint or is
    damaged.
    """
    path = Path(path)
    header, blocks = _read_blocks(path)
    try:
        return Contents(
            weights=_weights(header, blocks),
            tensors=_tensors(header, blocks),
            model=str(header["model"]),
            model_args=dict(header["model_args"]),
            preprocessing=Preprocessing.from_dict(header["preprocessing"]) if header["preprocessing"] else None,
            class_names=tuple(map(str, header["class_names"])),
            provenance=dict(header["provenance"]),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: its header is not one that ldnq writes") from error
    except LdnqError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def load(path: str | Path, module: nn.Module | None = None) -> QuantizedModel:
    """Read what `save` wrote, as a network whose logits are bit for bit those of the saved one.

    `module` is a network to fill, needed where the file's network is not one that ldnq builds by name. Raises
    `CheckpointError` where the file does not fit it or cannot be read.
    """
    contents = read(path)
    if module is None:
        if not contents.model or ":" in contents.model:
            raise CheckpointError(
                f"{path} holds a network of {contents.model or 'the caller'}: give it as load(path, module=…) or by "
                "--model"
            )
        module = build(contents.model, contents.model_args)
    dequantized = {name: weight.dequantize() for name, weight in contents.weights.items()}
    _fill(module, contents.tensors | dequantized, path)
    return QuantizedModel(
        module.eval(),
        contents.weights,
        contents.model,
        contents.model_args,
        contents.preprocessing,
        contents.class_names,
        contents.provenance,
    )


def _read_blocks(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: expected a model.h5 written by 'ldnq quantize'")
    try:
        with h5py.File(path, "r") as file:
            raw = {name: file[name][:] for name in ("header", *BLOCKS)}
        inflate = zlib.decompressobj()
        header = json.loads(inflate.decompress(raw.pop("header").tobytes(), MAX_HEADER))
        version, digests = header["format_version"], dict(header["sha256"])
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise CheckpointError(f"{path} is not a checkpoint of ldnq, or is damaged") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}, expected {FORMAT_VERSION}: use a matching ldnq")
    for name, block in raw.items():
        if hashlib.sha256(block.tobytes()).hexdigest() != digests.get(name):
            raise CheckpointError(f"{path} is damaged: the checksum of its {name} does not match")
    return header, raw


def _weights(header: Mapping[str, Any], blocks: Mapping[str, np.ndarray]) -> dict[str, QuantizedWeight]:
    levels = _Reader(blocks["levels"])
    codebooks = [Codebook(tuple(levels.take(count).astype(float).tolist())) for count in header["codebooks"]]
    packed, scales, weights = _Reader(blocks["codes"]), _Reader(blocks["scales"]), {}
    for name, shape, num_scales, index in header["weights"]:
        codebook, count = codebooks[index], math.prod(shape)
        codes = unpack(packed.take(packed_size(count, codebook.num_levels)), count, codebook.num_levels)
        scale = torch.from_numpy(scales.take(num_scales).astype(np.float32))
        if num_scales not in (1, shape[0]):
            raise ValueError(f"{num_scales} scales for {shape[0]} channels")
        weights[str(name)] = QuantizedWeight(torch.from_numpy(codes).view(shape), scale, codebook)
    for reader in (levels, packed, scales):
        reader.finish()
    return weights


def _tensors(header: Mapping[str, Any], blocks: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    raw, tensors = _Reader(blocks["tensors"]), {}
    for name, dtype, shape in header["tensors"]:
        count = math.prod(shape) * DTYPES[dtype].itemsize
        flat = torch.from_numpy(raw.take(count).copy())
        tensors[str(name)] = flat.view(DTYPES[dtype]).view(shape) if count else torch.empty(shape, dtype=DTYPES[dtype])
    raw.finish()
    return tensors


class _Reader:
    """Takes a block apart from its beginning; whoever asks for more than there is gets a `ValueError`."""

    def __init__(self, block: np.ndarray) -> None:
        if block.ndim != 1:
            raise ValueError("a block is not flat")
        self.block = block
        self.position = 0

    def take(self, count: int) -> np.ndarray:
        if count < 0 or self.position + count > len(self.block):
            raise ValueError("a block ends early")
        self.position += count
        return self.block[self.position - count : self.position]

    def finish(self) -> None:
        if self.position != len(self.block):
            raise ValueError("a block holds more than the header says")


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    own = module.state_dict()
    wrong = [name for name in own.keys() | tensors.keys() if _shape(own, name) != _shape(tensors, name)]
    if wrong:
        raise CheckpointError(f"{path} does not fit the network: {shorten(sorted(wrong))} differ")
    module.load_state_dict(tensors)


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _join(arrays) -> np.ndarray:
    arrays = list(arrays)
    return np.concatenate(arrays) if arrays else np.empty(0, np.uint8)


def _to_bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
