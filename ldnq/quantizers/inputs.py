"""Layers that round what they are given, in any network."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar

from torch import Tensor, nn

from ldnq.config import FLOAT
from ldnq.errors import NetworkError, UsageError
from ldnq.registry import Registry

Compute = Callable[[Tensor], Tensor]
# What a checkpoint says of a layer's inputs: the kind of the quantizer, and its options.
Spec = Mapping[str, Any]


class InputQuantizer(nn.Module, ABC):
    """What a `layer` does to its inputs before it computes, and to what it has computed.

    `kind` is its name among the `kinds`; made of a layer and the `options` that `spec` keeps. `bits` are those of the
    rounded inputs. Rounding has a gradient in training mode; in eval mode values are exactly those of the grid.
    """

    kind: ClassVar[str]
    bits: int

    @abstractmethod
    def forward(self, x: Tensor, compute: Compute) -> Tensor:
        """`compute`, the layer's own work, of the rounded `x`."""

    def start(self, x: Tensor) -> None:
        """Settle what depends on the inputs, before the first training step."""

    def options(self) -> dict[str, Any]:
        """What it takes to make it again, but for what is in the state dict."""
        return {}

    def spec(self) -> Spec:
        """The kind and the options."""
        return {"kind": self.kind, **self.options()}


kinds: Registry[type[InputQuantizer]] = Registry("kind of rounding")


class RoundsInputs:
    """What a layer becomes beside what it is, a Conv2d or Linear."""

    inputs: InputQuantizer

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes of its rounded inputs."""
        return self.inputs(x, super().forward)  # type: ignore[misc]


@cache
def _rounding(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Rounding{kind.__name__}", (RoundsInputs, kind), {})


def with_inputs(module: nn.Module, quantizers: Mapping[str, InputQuantizer]) -> nn.Module:
    """`module`, changed so that the layers of these names round their inputs.

    Raises `NetworkError` where there is no such layer.
    """
    for name, quantizer in quantizers.items():
        layer = _layer(module, name)
        if not isinstance(layer, RoundsInputs):
            layer.__class__ = _rounding(type(layer))
        layer.inputs = quantizer.to(layer.weight.device)
    return module


def find_inputs(module: nn.Module) -> dict[str, InputQuantizer]:
    """The quantizers of the layers that round their inputs, by the layers' names."""
    return {name: layer.inputs for name, layer in module.named_modules() if isinstance(layer, RoundsInputs)}


def rebuilt(module: nn.Module, specs: Mapping[str, Spec]) -> nn.Module:
    """`module`, changed as the `specs` of its layers' inputs say; raises `LdnqError` where they are none."""
    quantizers = {}
    for name, spec in specs.items():
        options = dict(spec)
        try:
            quantizers[name] = kinds.get(options.pop("kind"))(_layer(module, name), **options)
        except (KeyError, TypeError) as error:
            raise NetworkError(f"expected a known rounding of the inputs of {name}, found {dict(spec)}") from error
    return with_inputs(module, quantizers)


def check_bits(bits: int) -> int:
    """`bits`; raises `UsageError` where inputs cannot have so many."""
    if not (isinstance(bits, int) and 1 <= bits <= FLOAT):
        raise UsageError(f"expected 1 to {FLOAT} bits of activations, got {bits!r}")
    return bits


def _layer(module: nn.Module, name: str) -> nn.Module:
    try:
        layer = module.get_submodule(name)
    except AttributeError as error:
        raise NetworkError(f"the network has no layer {name} to round the inputs of: is it another version?") from error
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        found = type(layer).__name__
        raise NetworkError(f"expected a Conv2d or Linear layer {name} to round the inputs of, found {found}")
    return layer
