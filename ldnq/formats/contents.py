"""What every kind of checkpoint holds, and how a network comes out of it."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldnq.errors import CheckpointError, LdnqError, shorten
from ldnq.folding import without_batch_norms
from ldnq.grid import Grid
from ldnq.network import build
from ldnq.precisions import Precisions
from ldnq.preprocessing import Preprocessing
from ldnq.quantized import QuantizedModel, QuantizedWeight
from ldnq.quantizers.activations import with_grids
from ldnq.quantizers.inputs import rebuilt
from ldnq.switching import with_biases, with_layers, with_norms

DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


# Of layers that have a bias for each width.
BIASES = ".biases"


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
    folded: bool
    grids: dict[str, Grid]
    inputs: dict[str, dict[str, Any]]
    precisions: Precisions | None = None

    @classmethod
    def parse(
        cls, header: Mapping[str, Any], weights: dict[str, QuantizedWeight], tensors: dict[str, Tensor]
    ) -> "Contents":
        """From what `describe` gave; raises what a header of something else makes Python raise."""
        return cls(
            weights,
            tensors,
            model=str(header["model"]),
            model_args=dict(header["model_args"]),
            preprocessing=Preprocessing.from_dict(header["preprocessing"]) if header["preprocessing"] else None,
            class_names=tuple(map(str, header["class_names"])),
            provenance=dict(header["provenance"]),
            folded=bool(header.get("folded", False)),
            grids={str(name): Grid(float(s), int(z), int(b)) for name, (s, z, b) in header.get("grids", {}).items()},
            inputs={str(name): dict(spec) for name, spec in header.get("inputs", {}).items()},
            precisions=Precisions(**header["precisions"]) if header.get("precisions") else None,
        )

    def assemble(self, path: str | Path, module: nn.Module | None = None) -> QuantizedModel:
        """The network, with these weights in it: `module`, or one built by its name.

        Raises `CheckpointError` that names the file `path` where the network is not known or has other tensors.
        """
        if module is None:
            if not self.model or ":" in self.model:
                raise CheckpointError(
                    f"{path} holds a network of {self.model or 'the caller'}: give it as load(path, module=…) or by "
                    "--model"
                )
            module = build(self.model, self.model_args)
        if self.inputs:
            module = rebuilt(copy.deepcopy(module), self.inputs)
        if self.precisions:
            module = self._with_widths(copy.deepcopy(module), self.precisions, path)
        if self.folded:
            module = without_batch_norms(copy.deepcopy(module))
        if self.grids:
            module = with_grids(module, self.grids, self.weights)
        _fill(module, self.tensors | {name: weight.dequantize() for name, weight in self.weights.items()}, path)
        return QuantizedModel(
            module.eval(),
            self.weights,
            self.model,
            self.model_args,
            self.preprocessing,
            self.class_names,
            self.provenance,
            self.folded,
            self.grids,
            self.inputs,
            self.precisions,
        )

    def _with_widths(self, module: nn.Module, precisions: Precisions, path: str | Path) -> nn.Module:
        scales = {name: self.tensors.get(name.removesuffix("weight") + "scales") for name in precisions.parameters}
        found = {name: entries for name, entries in scales.items() if entries is not None}
        if len(found) < len(scales) or any(
            entries.shape[:1] != (len(precisions.widths),) for entries in found.values()
        ):
            raise CheckpointError(f"{path} does not fit the network: scales of some widths are missing")
        own = module.state_dict()
        ends = {
            name.removesuffix(BIASES): tensor
            for name, tensor in self.tensors.items()
            if name.endswith(BIASES) and name not in own
        }
        module = with_layers(with_norms(module, precisions.widths), precisions, found)
        return with_biases(module, precisions.widths, ends)


def describe(model: QuantizedModel) -> dict[str, Any]:
    """What a header says of the network, as plain values."""
    return {
        "model": model.model,
        "model_args": dict(model.model_args),
        "preprocessing": model.preprocessing and model.preprocessing.to_dict(),
        "class_names": list(model.class_names),
        "provenance": dict(model.provenance),
        "folded": model.folded,
        "grids": {name: [grid.scale, grid.zero_point, grid.bits] for name, grid in model.grids.items()},
        "inputs": {name: dict(spec) for name, spec in model.inputs.items()},
        "precisions": model.precisions and asdict(model.precisions),
    }


def float_tensors(model: QuantizedModel) -> dict[str, Tensor]:
    """Everything in the network's state dict that is not quantized."""
    return {name: tensor for name, tensor in model.module.state_dict().items() if name not in model.weights}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """While a header is interpreted: whatever lies in it is a `CheckpointError` that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: its header is not one that ldnq writes") from error
    except LdnqError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def check_version(path: Path, header: Any, expected: int) -> None:
    """Raise `CheckpointError` unless the header is one of the format that is `expected`."""
    if not isinstance(header, Mapping) or "format_version" not in header:
        raise CheckpointError(f"{path} is damaged: its header is not one that ldnq writes")
    if header["format_version"] != expected:
        raise CheckpointError(
            f"{path} has format version {header['format_version']}, expected {expected}: use a matching ldnq"
        )


def digest(header: Mapping[str, Any], weights: Mapping[str, QuantizedWeight], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a checkpoint holds, whatever the order it is stored in."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(weights):
        weight = weights[name]
        for part in (weight.codes, weight.scale, torch.tensor(weight.codebook.levels)):
            _update(found, name, part)
    for name in sorted(tensors):
        _update(found, name, tensors[name])
    return found.hexdigest()


def to_bytes(tensor: Tensor) -> np.ndarray:
    """The little-endian bytes of `tensor`, as a flat uint8 array."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _update(found: Any, name: str, tensor: Tensor) -> None:
    found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    found.update(to_bytes(tensor).tobytes())


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    own = module.state_dict()
    wrong = [name for name in own.keys() | tensors.keys() if _shape(own, name) != _shape(tensors, name)]
    if wrong:
        raise CheckpointError(f"{path} does not fit the network: {shorten(sorted(wrong))} differ")
    module.load_state_dict(tensors)


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
