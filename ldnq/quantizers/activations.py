"""Activations on a grid of integers: where in a network, and what computes it."""

import operator
from collections.abc import Container, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ldnq.errors import NetworkError
from ldnq.grid import Grid

# What only clips values from below or above: the grid lies behind it, its input needs none.
CLIPS = {nn.ReLU, nn.ReLU6, nn.Hardtanh, F.relu, F.relu6, F.hardtanh, torch.relu, torch.relu_, "relu", "relu_"}
# What hands on the values it is given, and zeros: they stay on the grid they are on.
MOVES = {
    nn.MaxPool2d, nn.Flatten, nn.AdaptiveMaxPool2d, nn.ChannelShuffle, F.max_pool2d, F.pad,
    torch.flatten, torch.transpose, torch.permute,
    operator.getitem, "flatten", "view", "reshape", "squeeze", "contiguous", "transpose", "permute",
}  # fmt: skip
# What gives parts of a value, of which each is taken by an index.
SPLITS = {torch.chunk, torch.split, "chunk", "split"}
IDLE = {nn.Identity, nn.Dropout, nn.Dropout2d}


class ActivationQuantizer(nn.Module):
    """Rounds to the nearest value of a `grid`, halves to the even integer, as `QuantizeLinear` of ONNX does."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("scale", torch.tensor(grid.scale), persistent=False)
        for name, value in {"zero_point": grid.zero_point, "lowest": 0, "highest": 2**grid.bits - 1}.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.uint8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` in its own shape."""
        if torch.onnx.is_in_onnx_export():
            return self._as_onnx(x)
        low, high = -self.grid.zero_point, 2**self.grid.bits - 1 - self.grid.zero_point
        return (x / self.scale).round().clamp(low, high) * self.scale

    def _as_onnx(self, x: Tensor) -> Tensor:
        """The same in the operators that runtimes know to compute with integers; those have eight bits."""
        parameters = (self.scale, self.zero_point)
        integers = torch.onnx.ops.symbolic("QuantizeLinear", (x, *parameters), dtype=torch.uint8, shape=x.shape)
        if self.grid.bits < 8:
            # Of integers: a runtime finds its pattern only where floats go into them at once.
            ends = (self.lowest, self.highest)
            integers = torch.onnx.ops.symbolic("Clip", (integers, *ends), dtype=torch.uint8, shape=x.shape)
        return torch.onnx.ops.symbolic("DequantizeLinear", (integers, *parameters), dtype=x.dtype, shape=x.shape)


def trace(module: nn.Module) -> fx.GraphModule:
    """The graph of `module`, with the module's own layers; raises `NetworkError` where torch.fx cannot follow it."""
    try:
        return fx.symbolic_trace(module)
    except Exception as error:  # whatever a forward pass does with a proxy for its input
        message = " ".join(str(error).split())[:100]
        raise NetworkError(f"activations cannot be quantized: torch.fx cannot follow the network: {message}") from error


def points(traced: fx.GraphModule, example: Tensor) -> dict[str, str]:
    """The names of values that get a grid, in their order, and of the value whose grid each shares: its own, or that of
    the value that it only moves.

    The network's input and the result of every computation get one, but for outputs and what is clipped next.
    """
    values = _Recorder(traced)
    values.run(example)
    found: dict[str, str] = {}
    for node in traced.graph.nodes:
        kind = _kind(traced, node)
        if node.op in ("output", "get_attr") or node.name not in values.floats or kind in IDLE:
            continue
        if _moves(traced, node):
            source = _through(traced, node.all_input_nodes[0])
            if source.name in found:
                found[node.name] = found[source.name]
        elif not _ends_here(traced, node):
            found[node.name] = node.name
    return found


def with_grids(module: nn.Module, grids: Mapping[str, Grid], weights: Container[str]) -> fx.GraphModule:
    """`module` with its values of these names on their grids; raises `NetworkError` where there is no such value.

    Layers whose weights are not among the quantized `weights` take what was before the grid: a runtime would quantize
    what stands between integers by itself.
    """
    traced = trace(module)
    floats = {
        node
        for node in traced.graph.nodes
        if node.op == "call_module"
        and isinstance(traced.get_submodule(node.target), (nn.Conv2d, nn.Linear))
        and f"{node.target}.weight" not in weights
    }
    nodes = {node.name: node for node in traced.graph.nodes}
    for name, grid in grids.items():
        if name not in nodes:
            raise NetworkError(f"the network has no value {name} to put on a grid: is it another version of it?")
        place = f"grid_of_{name}"
        traced.add_submodule(place, ActivationQuantizer(grid))
        with traced.graph.inserting_after(nodes[name]):
            quantized = traced.graph.call_module(place, (nodes[name],))
        nodes[name].replace_all_uses_with(quantized, lambda user, q=quantized: user is not q and user not in floats)
    traced.recompile()
    return traced.train(module.training)


def input_grid(traced: fx.GraphModule, layer: str) -> Grid | None:
    """The grid that the inputs of the layer called `layer` are on, if there is one."""
    for node in traced.graph.nodes:
        if node.op == "call_module" and node.target == layer:
            source = _through(traced, node.all_input_nodes[0])
            module = traced.get_submodule(source.target) if source.op == "call_module" else None
            return module.grid if isinstance(module, ActivationQuantizer) else None
    return None


class _Recorder(fx.Interpreter):
    """Remembers the names of the values that are floating tensors."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.floats: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point():
            self.floats.add(n.name)
        return value


def _kind(traced: fx.GraphModule, node: fx.Node) -> Any:
    return type(traced.get_submodule(node.target)) if node.op == "call_module" else node.target


def _moves(traced: fx.GraphModule, node: fx.Node) -> bool:
    if _kind(traced, node) is F.pad and node.kwargs.get("value", node.args[3] if len(node.args) > 3 else 0):
        return False
    return _kind(traced, node) in MOVES


def _through(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Where a value comes from that modules only hand on, or hand out in parts."""
    while _kind(traced, node) in IDLE | SPLITS:
        node = node.all_input_nodes[0]
    return node


def _ends_here(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether all that becomes of a value is an output, or is clipped next."""
    for user in node.users:
        kind = _kind(traced, user)
        if kind in IDLE | SPLITS or _moves(traced, user):
            if not _ends_here(traced, user):
                return False
        elif user.op != "output" and kind not in CLIPS:
            return False
    return True
