"""ONNX: integer codes that `DequantizeLinear` turns into weights, in a graph that any runtime of ONNX runs.

What ldnq needs to load the file again lies in its metadata: the network, the levels, and tensors that the graph has no
use for.
"""

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ldnq.codebook import Codebook
from ldnq.errors import CheckpointError, ExportError, UsageError
from ldnq.extras import require
from ldnq.files import replacing
from ldnq.formats.contents import DTYPES, Contents, check_version, describe, digest, float_tensors, reading, to_bytes
from ldnq.formats.onnx_graph import CODES, SCALE, put_integers, simplify, trace
from ldnq.formats.registry import Format, Opened, formats
from ldnq.quantized import QuantizedModel, QuantizedWeight

FORMAT_VERSION = 1
KEY = "ldnq.quantized"
# The lowest operator set that has the type in DequantizeLinear, so that old runtimes take the file.
OPSETS = {"float": 20, "int8": 20, "int16": 21, "int4": 21, "int2": 25}
RANGES = {"int2": 1, "int4": 7, "int8": 127, "int16": 32767}
# Of the graph that onnxruntime makes of a file.
INTEGER_LAYERS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger")
WEIGHT_TYPES = ("int8", "int4", "int2", "float")


@formats.register("onnx")
@dataclass(frozen=True)
class Onnx(Format):
    """A graph for onnxruntime, weights as integers of `weight_type` with their scales, or folded into `float`.

    int8 holds every codebook, but for levels above 127, which become int16; int4 those of 3, 5 and 7 levels, int2 that
    of 3.
    """

    weight_type: str = "int8"
    suffix: ClassVar[str] = ".onnx"

    def __post_init__(self) -> None:
        if self.weight_type not in WEIGHT_TYPES:
            raise UsageError(f"expected a weight type of {', '.join(WEIGHT_TYPES)}, got {self.weight_type!r}")

    def write(self, model: QuantizedModel, path: Path, example: Tensor) -> None:
        """Write `model` to `path`; batches may have any size. Raises `UsageError` where levels do not fit the type."""
        if model.grids and self.weight_type != "int8":
            raise UsageError(f"activations on grids go with --weight-type int8, got {self.weight_type}")
        onnx, ir = require("onnx", "onnx"), require("onnx_ir", "onnx")
        integers = self.weight_type != "float"
        kinds = {name: self._kind(name, weight.codebook) for name, weight in model.weights.items() if integers}
        opset = max(OPSETS[kind] for kind in ("float", *kinds.values()))
        exported = trace(model.module, example, opset)
        for name, kind in kinds.items():
            put_integers(exported.graph, model, name, kind)
        simplify(exported)
        exported.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
        metadata = _metadata(exported.graph, model)
        proto = ir.to_proto(exported)
        metadata["graph_sha256"] = _digest_of_graph(proto)
        proto.metadata_props.add(key=KEY, value=json.dumps(metadata))
        with replacing(path) as temporary:
            temporary.write_bytes(proto.SerializeToString())

    def open(self, path: Path, model: QuantizedModel) -> Opened:
        """The file in onnxruntime, and the weights as that computes them."""
        onnx = require("onnx", "onnx")
        # As many outputs more as there are weights, in memory alone.
        proto = onnx.load(path)
        for name, weight in model.weights.items():
            shape = list(weight.codes.shape)
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        image = proto.graph.input[0].type.tensor_type.shape.dim[1:]
        nothing = np.zeros((1, *(entry.dim_value for entry in image)), np.float32)
        weights = _session(proto.SerializeToString()).run(list(model.weights), {"input": nothing})
        as_written = _forward(_session(path.read_bytes(), optimize=False)) if model.rounds_activations else None
        found = {name: torch.from_numpy(weight) for name, weight in zip(model.weights, weights)}
        return Opened(found, _forward(_session(path.read_bytes())), as_written)

    def remarks(self, path: Path, model: QuantizedModel) -> list[tuple[str, str]]:
        """How many layers onnxruntime computes with integers, and which it does not, where activations are on grids."""
        if not model.grids:
            return []
        calls = (node.target for node in model.module.graph.nodes if node.op == "call_module")
        kinds = (nn.Conv2d, nn.Linear)
        layers = [name for name in dict.fromkeys(calls) if isinstance(model.module.get_submodule(name), kinds)]
        integers = _inputs_of_integer_layers(path)
        floats = [name for name in layers if f"{name}.weight{CODES}" not in integers]
        count = f"{len(layers) - len(floats)} of {len(layers)}, as onnxruntime runs them"
        return [("integer layers", count)] + ([("float layers", ", ".join(floats))] if floats else [])

    def _kind(self, name: str, codebook: Codebook) -> str:
        """The integer type of a codebook's levels; raises `UsageError` where they do not fit the one asked for."""
        most = codebook.levels[-1]
        if any(level != round(level) for level in codebook.levels):
            raise UsageError(f"the levels of {name}, {codebook}, are no integers: use --weight-type float")
        if self.weight_type == "int8":
            return "int8" if most <= RANGES["int8"] else "int16"
        if most > RANGES[self.weight_type]:
            raise UsageError(
                f"the levels of {name}, up to ±{most:g}, do not fit {self.weight_type}: use --weight-type int8"
            )
        return self.weight_type


def read(path: Path) -> Contents:
    """Read what `Onnx.write` wrote with integer weights, without building the network.

    Raises `CheckpointError` where the file is not such a one or is damaged.
    """
    onnx = require("onnx", "onnx")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: expected a file written by 'ldnq export'")
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf has errors of its own
        raise CheckpointError(f"{path} is not an ONNX file, or is damaged") from error
    if not proto.graph.node:
        raise CheckpointError(f"{path} is not an ONNX file, or is damaged")
    entry = next((entry.value for entry in proto.metadata_props if entry.key == KEY), None)
    if entry is None:
        raise CheckpointError(f"{path} was not written by ldnq: it runs in onnxruntime, but cannot be loaded here")
    with reading(path):
        metadata = json.loads(entry)
        initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    check_version(path, metadata, FORMAT_VERSION)
    with reading(path):
        if metadata["graph_sha256"] != _digest_of_graph(proto):
            raise CheckpointError("the checksum of its graph does not match")
        floats = [name for name in metadata["weights"] if name + CODES not in initializers]
    if floats:
        raise CheckpointError(f"{path} holds {floats[0]} as floats: export with --weight-type int8 to load it again")
    with reading(path):
        weights = {
            str(name): _weight(name, Codebook(tuple(map(float, levels))), initializers)
            for name, levels in metadata["weights"].items()
        }
        tensors = {str(name): _tensor(name, entry, initializers) for name, entry in metadata["tensors"].items()}
        if digest(metadata["header"], weights, tensors) != metadata["sha256"]:
            raise CheckpointError("its checksum does not match")
        return Contents.parse(metadata["header"], weights, tensors)


def _metadata(graph: Any, model: QuantizedModel) -> dict[str, Any]:
    """What `read` needs beside the graph: tensors of the state dict that are not in it lie here in base64."""
    header, others = describe(model), float_tensors(model)
    return {
        "format_version": FORMAT_VERSION,
        "header": header,
        "weights": {name: list(weight.codebook.levels) for name, weight in model.weights.items()},
        "tensors": {name: _place(graph, name, tensor) for name, tensor in others.items()},
        "sha256": digest(header, model.weights, others),
    }


def _place(graph: Any, name: str, tensor: Tensor) -> list:
    values = to_bytes(tensor).tobytes()
    # numpy has no bfloat16.
    if name in graph.initializers and tensor.dtype != torch.bfloat16:
        stored = graph.initializers[name].const_value
        if stored.shape.numpy() == tuple(tensor.shape) and stored.tobytes() == values:
            return []
    values = base64.b64encode(values).decode()
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), values]


def _weight(name: str, codebook: Codebook, initializers: Mapping[str, Any]) -> QuantizedWeight:
    levels, scale = (_array(initializers[name + part]) for part in (CODES, SCALE))
    levels = levels.astype(np.float32)
    codes = np.searchsorted(np.array(codebook.levels, np.float32), levels).clip(max=codebook.num_levels - 1)
    weight = QuantizedWeight(torch.from_numpy(codes.astype(np.uint8)), torch.from_numpy(scale), codebook)
    if not np.array_equal(codebook.values(weight.codes).numpy(), levels):
        raise CheckpointError(f"the codes of {name} are none of its levels")
    return weight


def _tensor(name: str, entry: list, initializers: Mapping[str, Any]) -> Tensor:
    if not entry:
        return torch.from_numpy(_array(initializers[name]))
    dtype, shape, values = entry
    raw = torch.frombuffer(bytearray(base64.b64decode(values)), dtype=torch.uint8) if values else torch.empty(0)
    if raw.numel() != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{name} is longer or shorter than its shape")
    return raw.view(DTYPES[dtype]).view(shape) if values else torch.empty(shape, dtype=DTYPES[dtype])


def _array(tensor: Any) -> np.ndarray:
    onnx = require("onnx", "onnx")
    if not tensor.raw_data and math.prod(tensor.dims):
        raise ValueError(f"{tensor.name} is not stored as raw bytes")
    return onnx.numpy_helper.to_array(tensor).copy()


def _digest_of_graph(proto: Any) -> str:
    return hashlib.sha256(proto.graph.SerializeToString(deterministic=True)).hexdigest()


def _session(model: bytes, optimize: bool = True, optimized: Path | None = None) -> Any:
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized:
        options.optimized_model_filepath = str(optimized)
    try:
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for every failure
        message = " ".join(str(error).split())[:200]
        raise ExportError(f"onnxruntime {runtime.__version__} does not take the file: {message}") from error


def _forward(session: Any) -> Callable[[Tensor], Tensor]:
    return lambda batch: torch.from_numpy(session.run(["output"], {"input": batch.numpy(force=True)})[0])


def _inputs_of_integer_layers(path: Path) -> set[str]:
    """What goes into layers on integers, in the graph that onnxruntime makes of the file."""
    onnx = require("onnx", "onnx")
    with TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        _session(path.read_bytes(), optimized=optimized)
        nodes = onnx.load(optimized).graph.node
        return {name for node in nodes if node.op_type in INTEGER_LAYERS for name in node.input}
