"""What one image costs a network: multiply-accumulates and parameters, layer by layer, by the bits they are done in."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from ldnq import graph

FLOAT, KBIT, BINARY = "float", "k-bit", "binary"
PARTS = {"float": FLOAT, "kbit": KBIT, "binary": BINARY}
FLOAT_BITS = 32.0
# Modules of which ptflops counts one operation for each output, or for each input.
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class LayerComplexity:
    """A module by its dotted name: `macs` multiply-accumulates of one image, its own `parameters`, and the bits of its
    weights and of its inputs, 32 where they are float.

    `elementwise` counts what is done to single values as ptflops does: one for a bias, an activation function or a
    pooling's input, two for a batch norm.
    """

    name: str
    kind: str
    macs: int
    parameters: int
    weight_bits: float = FLOAT_BITS
    activation_bits: float = FLOAT_BITS
    elementwise: int = 0

    @property
    def operation(self) -> str:
        """What its multiply-accumulates are: "binary" of two values by two, "k-bit" of few by few, else "float"."""
        if self.weight_bits == self.activation_bits == 1:
            return BINARY
        return KBIT if max(self.weight_bits, self.activation_bits) < FLOAT_BITS else FLOAT


@torch.no_grad()
def complexity(
    module: nn.Module,
    image_size: int,
    weight_bits: Mapping[str, float] = {},
    activation_bits: Mapping[str, float] = {},
) -> list[LayerComplexity]:
    """Every module that computes or has parameters, in the order of their first calls.

    `weight_bits` and `activation_bits`, of a layer's weights and inputs, are by the layer's name and 32 elsewhere.
    Raises `NetworkError` where the network cannot run on an RGB image of this side.
    """
    names = {child: name for name, child in module.named_modules()}
    order: dict[str, None] = {}
    elementwise: Counter[str] = Counter()

    def count(child: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            elementwise[names[child]] += _elementwise(child, inputs[0], output)

    handles = [child.register_forward_pre_hook(lambda child, _: order.setdefault(names[child])) for child in names]
    handles += [child.register_forward_hook(count) for child in names]
    device = next((parameter.device for parameter in module.parameters()), None)
    try:
        with _evaluating(module), FlopCounterMode(display=False) as counter:
            graph.forward(module, torch.zeros(1, 3, image_size, image_size, device=device))
    finally:
        for handle in handles:
            handle.remove()
    macs, parameters = _by_layer(module, _own_macs(counter)), _own_parameters(module)
    return [
        LayerComplexity(
            name,
            graph.kind(module.get_submodule(name)),
            macs[name],
            parameters[name],
            weight_bits.get(name, FLOAT_BITS),
            activation_bits.get(name, FLOAT_BITS),
            elementwise[name],
        )
        for name in dict.fromkeys([*order, *parameters])
        if macs[name] or parameters[name] or elementwise[name]
    ]


def totals(layers: Sequence[LayerComplexity]) -> dict[str, int]:
    """Sums: `parameters`, `macs` and those of them that are `float_macs`, `kbit_macs` and `binary_macs`, and
    `elementwise`."""
    found = {name: sum(getattr(layer, name) for layer in layers) for name in ("parameters", "macs")}
    for name, operation in PARTS.items():
        found[f"{name}_macs"] = sum(layer.macs for layer in layers if layer.operation == operation)
    return found | {"elementwise": sum(layer.elementwise for layer in layers)}


def in_words(layers: Sequence[LayerComplexity]) -> str:
    """One line: parameters and multiply-accumulates, by the bits they are done in where not all are float."""
    found = totals(layers)
    parts = [f"{shortened(found[f'{kind}_macs'])} {name}" for kind, name in PARTS.items() if found[f"{kind}_macs"]]
    said = f"{shortened(found['parameters'])} parameters, {shortened(found['macs'])} multiply-accumulates an image"
    return f"{said}: {', '.join(parts)}" if found["float_macs"] < found["macs"] else said


def shortened(number: int) -> str:
    """Two digits behind the point of thousands, millions or thousands of millions.

    >>> shortened(969_822)
    '969.82 k'
    """
    for unit, power in (("G", 9), ("M", 6), ("k", 3)):
        if number >= 10**power:
            return f"{number / 10**power:.2f} {unit}"
    return str(number)


def _elementwise(child: nn.Module, x: Tensor, y: Tensor) -> int:
    if isinstance(child, tuple(graph.KINDS)):
        return y.numel() if child.bias is not None else 0
    if isinstance(child, _BatchNorm):
        return x.numel() * (2 if child.affine else 1)
    if isinstance(child, ACTIVATIONS):
        return y.numel()
    return x.numel() if isinstance(child, POOLS) else 0


def _own_macs(counter: FlopCounterMode) -> Counter[str]:
    """Of each module by its name, without those of the modules within it."""
    # Names begin with the class of the whole network; "Global" is the sum.
    counts = {key: sum(flops.values()) // 2 for key, flops in counter.get_flop_counts().items() if key != "Global"}
    own = Counter({key.partition(".")[2]: macs for key, macs in counts.items()})
    for key, macs in counts.items():
        # A container that is never called itself, such as a ModuleList, counts nothing.
        around = key.rpartition(".")[0]
        while around and around not in counts:
            around = around.rpartition(".")[0]
        if around:
            own[around.partition(".")[2]] -= macs
    return own


def _by_layer(module: nn.Module, macs: Counter[str]) -> Counter[str]:
    """What is computed within a layer, by what rounds its inputs, is the layer's."""
    found: Counter[str] = Counter()
    for name, count in macs.items():
        around = name.rpartition(".")[0]
        inside = bool(around) and isinstance(module.get_submodule(around), tuple(graph.KINDS))
        found[around if inside else name] += count
    return found


def _own_parameters(module: nn.Module) -> Counter[str]:
    """Of each module by its name, a shared one of the first alone; what a weight is computed from is its layer's."""
    found: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        owner = name.rpartition(".")[0]
        found[f".{owner}".partition(".parametrizations.")[0].removeprefix(".")] += parameter.numel()
    return found


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """In eval mode, without the shortcut of attention layers, whose operations nobody could count."""
    training, shortcut = module.training, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    module.eval()
    try:
        yield
    finally:
        module.train(training)
        torch.backends.mha.set_fastpath_enabled(shortcut)
