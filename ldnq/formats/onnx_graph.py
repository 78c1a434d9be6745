"""The graph of a network in ONNX, and what is done to it."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldnq.errors import NetworkError
from ldnq.extras import require
from ldnq.quantized import QuantizedModel
from ldnq.quantizers.activations import input_grid

# What follows the name of a parameter in the names of the initializers that it is made of.
CODES, SCALE, ZERO = ".codes", ".scale", ".zero_point"


def trace(module: nn.Module, example: Tensor, opset: int) -> Any:
    """The network as an `onnx_ir.Model`, with nothing simplified: that would fold batch norms into weights."""
    require("onnxscript", "onnx")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch about its own deprecations
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["input"],
                output_names=["output"],
            )
    except Exception as error:  # whatever a forward pass does that torch.export cannot follow
        message = " ".join(str(error.__cause__ or error).split())[:200]
        raise NetworkError(f"torch.onnx cannot export the network: {message}") from error
    return program.model


def put_integers(graph: Any, model: QuantizedModel, name: str, kind: str) -> None:
    """Let the weight called `name` be integers of type `kind` times their scale; and its layer's bias, where that lies
    on the grid of products, so that a runtime need not leave the integers."""
    weight = model.weights[name]
    if name not in graph.initializers:
        raise NetworkError(f"the graph of the network has no weight {name}: is it used under another name?")
    integers = weight.codebook.values(weight.codes).numpy().astype(np.int16).astype(_numbers(kind))
    _dequantize(graph, name, integers, weight.scale.numpy(), zero_point=bool(model.grids))
    layer = name.rpartition(".")[0]
    grid = input_grid(model.module, layer) if model.grids and name.endswith("weight") else None
    bias = f"{layer}.bias"
    if grid is None or bias not in graph.initializers or bias in model.weights:
        return
    values = model.module.get_parameter(bias).detach()
    unit = grid.bias_unit(weight.scale).expand(len(values))
    steps = (values / unit).round()
    if torch.equal(steps * unit, values):
        _dequantize(graph, bias, steps.numpy().astype(np.int32), unit.numpy())


def simplify(model: Any) -> None:
    """Compute what is constant and take out what nothing needs; batch norms stay what they are."""
    ir, optimizer = require("onnx_ir", "onnx"), require("onnxscript.optimizer", "onnx")
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    passes = ir.passes.common
    passes.ClearMetadataAndDocStringPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)


def _dequantize(graph: Any, name: str, integers: np.ndarray, scale: np.ndarray, zero_point: bool = False) -> None:
    """Put `integers`, their `scale` and the node that multiplies them in the place of the initializer `name`; with a
    `zero_point` of zero where a runtime wants one to compute with integers."""
    ir = require("onnx_ir", "onnx")
    scale = scale.reshape(() if scale.size == 1 else -1)
    inputs = {CODES: integers, SCALE: scale} | ({ZERO: np.zeros(scale.shape, integers.dtype)} if zero_point else {})
    parts = []
    for part, values in inputs.items():
        # Raw bytes: as varints int8 would take five times as much.
        tensor = ir.Tensor(np.ascontiguousarray(values).reshape(values.shape), name=name + part)
        value = ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        graph.initializers[value.name] = value
        parts.append(value)
    old = graph.initializers.pop(name)
    node = ir.Node("", "DequantizeLinear", parts, [ir.AttrInt64("axis", 0)] if scale.ndim else [])
    (new,) = node.outputs
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new)
    old.name, new.name = None, name
    graph.insert_before(graph[0], node)


def _numbers(kind: str) -> np.dtype:
    # numpy has none below eight bits.
    return np.dtype(getattr(require("ml_dtypes", "onnx"), kind) if kind in ("int4", "int2") else kind)
