"""The canonical checkpoint: one HDF5 file of five flat datasets.

`header` is zlib-compressed JSON (version, network, preprocessing, provenance, an index of parameters and tensors, and
the SHA-256 of each other dataset); `codes` holds the packed codes of all quantized parameters one after the other,
deflated by HDF5 where that helps, `scales` and `levels` their float32 scales and codebooks, `tensors` the raw
little-endian bytes of everything else. The file ends with the seal of `ldnq.hdf5`.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldnq import hdf5
from ldnq.codebook import Codebook
from ldnq.errors import CheckpointError
from ldnq.formats.contents import DTYPES, Contents, check_version, describe, float_tensors, reading, to_bytes
from ldnq.packing import pack, packed_size, unpack
from ldnq.quantized import QuantizedModel, QuantizedWeight

FORMAT_VERSION = 1
MAX_HEADER = 64 << 20
# Of HDF5's own deflate filter, and the share of the bytes that it must come down to.
LEVEL, WORTHWHILE = 6, 0.95
BLOCKS = {"codes": "u1", "scales": "<f4", "levels": "<f4", "tensors": "u1"}


def save(model: QuantizedModel, path: str | Path) -> dict[str, int]:
    """Write `model` to `path`; returns the bytes of codes, scales, tensors, overhead (the rest) and the whole file.

    >>> import ldnq, tempfile, torch
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(100, 8, bias=False))
    >>> model = ldnq.quantize(network, [torch.rand(50, 1, 10, 10)], kbits=3, preset="fast")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ldnq.save(model, f"{folder}/model.h5")["codes"]  # 800 weights of log2(3) bits
    160
    """
    path = Path(path)
    codebooks = list(dict.fromkeys(weight.codebook for weight in model.weights.values()))
    others = float_tensors(model)
    blocks = {
        "codes": _join(pack(w.codes.flatten().cpu().numpy(), w.codebook.num_levels) for w in model.weights.values()),
        "scales": _join(w.scale.cpu().numpy().astype("<f4") for w in model.weights.values()),
        "levels": _join(np.array(codebook.levels, "<f4") for codebook in codebooks),
        "tensors": _join(to_bytes(tensor) for tensor in others.values()),
    }
    header = {
        "format_version": FORMAT_VERSION,
        **describe(model),
        "codebooks": [codebook.num_levels for codebook in codebooks],
        "weights": [
            [name, list(w.codes.shape), w.scale.numel(), codebooks.index(w.codebook)]
            for name, w in model.weights.items()
        ],
        "tensors": [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in others.items()],
        "sha256": {name: hashlib.sha256(block.tobytes()).hexdigest() for name, block in blocks.items()},
    }
    with hdf5.created(path, libver="latest") as file:
        file["header"] = np.frombuffer(zlib.compress(json.dumps(header).encode(), 9), np.uint8)
        for name, block in blocks.items():
            file.create_dataset(name, data=block, **_filter(name, block))
        sizes = {name: file[name].id.get_storage_size() for name in ("codes", "scales", "tensors")}
    total = path.stat().st_size
    return sizes | {"overhead": total - sum(sizes.values()), "total": total}


def read(path: str | Path) -> Contents:
    """Read what `save` wrote, without building the network.

    Nothing in the file is executed or imported. Raises `CheckpointError` where the file is not such a checkpoint or is
    damaged.
    """
    path = Path(path)
    header, blocks = _read_blocks(path)
    with reading(path):
        return Contents.parse(header, _weights(header, blocks), _tensors(header, blocks))


def _filter(name: str, block: np.ndarray) -> dict[str, Any]:
    """Options of the dataset: codes whose zeros are many or lie together are deflated, if that is worth it."""
    if name != "codes" or len(zlib.compress(block.tobytes(), LEVEL)) > WORTHWHILE * len(block):
        return {}
    return {"chunks": block.shape, "compression": "gzip", "compression_opts": LEVEL}


def _read_blocks(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: expected a model.h5 written by 'ldnq quantize'")
    try:
        with hdf5.opened(path) as file:
            raw = {name: hdf5.read_flat(file, name, dtype) for name, dtype in {"header": "u1", **BLOCKS}.items()}
        inflate = zlib.decompressobj()
        header = json.loads(inflate.decompress(raw.pop("header").tobytes(), MAX_HEADER))
        digests = dict(header["sha256"])
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, zlib.error) as error:
        raise CheckpointError(f"{path} is not a checkpoint of ldnq, or is damaged") from error
    check_version(path, header, FORMAT_VERSION)
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


def _join(arrays: Iterable[np.ndarray]) -> np.ndarray:
    arrays = list(arrays)
    return np.concatenate(arrays) if arrays else np.empty(0, np.uint8)
