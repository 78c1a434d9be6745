"""Networks that run at several widths: parts that are switched, one set of weights, a batch norm for each width."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ldnq.config import FLOAT
from ldnq.errors import NetworkError
from ldnq.precisions import Precisions


class Switched:
    """A part of a network that has a width."""

    width: int

    def switch(self, width: int) -> None:
        """Work at `width` from now on."""
        self.width = width


def switched(module: nn.Module) -> list[Switched]:
    """Every part of `module` that has a width."""
    return [part for part in module.modules() if isinstance(part, Switched)]


def set_width(module: nn.Module, width: int) -> None:
    """Switch every part of `module` that has a width."""
    for part in switched(module):
        part.switch(width)


class SwitchedNorm(Switched, nn.ModuleDict):
    """A batch norm for each of `widths`, all beginning as `norm`."""

    def __init__(self, norm: _BatchNorm, widths: Sequence[int]) -> None:
        super().__init__({str(width): copy.deepcopy(norm) for width in widths})
        self.width = max(widths)

    def add(self, width: int) -> None:
        """One more, its factors and offsets between those of the next narrower and the next wider."""
        known = sorted(map(int, self))
        below = max((one for one in known if one < width), default=known[0])
        above = min((one for one in known if one > width), default=known[-1])
        low, high = self.of(below), self.of(above)
        self[str(width)] = norm = copy.deepcopy(low)
        if norm.affine and above > below:
            share = (width - below) / (above - below)
            norm.weight.data.copy_(low.weight.data.lerp(high.weight.data, share))
            norm.bias.data.copy_(low.bias.data.lerp(high.bias.data, share))

    def of(self, width: int) -> _BatchNorm:
        """That of `width`."""
        return cast(_BatchNorm, self[str(width)])

    def __getattr__(self, name: str) -> Any:
        # Whoever asks a batch norm for its factors gets those of the width.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "width" not in self.__dict__:
                raise
            return getattr(self.current, name)

    @property
    def current(self) -> _BatchNorm:
        """That of the width it works at."""
        return self.of(self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.current(x)


def check_untied(module: nn.Module) -> None:
    """Raise `NetworkError` where two layers share a weight: each would make its own of every width."""
    owners: dict[nn.Parameter, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.dim() > 1 and owners.setdefault(parameter, name) != name:
            raise NetworkError(
                f"{owners[parameter]} and {name} are one parameter: layers of several widths can share none"
            )


def with_norms(module: nn.Module, widths: Sequence[int]) -> nn.Module:
    """`module`, changed so that each of its batch norms is one for every width."""
    return _replaced(module, _BatchNorm, lambda norm: SwitchedNorm(norm, widths))


class NestedLayer(Switched):
    """What a layer becomes beside what it is, a Conv2d or Linear, whose weights of all widths come from one parameter.

    `scales` (widths, 1 or out) are those of every width. The weights of a width are made when they are first used, and
    kept until the next switch.
    """

    precisions: Precisions
    scales: Tensor
    made: Tensor | None
    _parameters: dict[str, nn.Parameter | None]

    def switch(self, width: int) -> None:
        super().switch(width)
        self.made = None

    @property
    def weight(self) -> Tensor:
        """The weights of the width."""
        if self.width == FLOAT:
            return self._stored
        if self.made is None:
            # Kept for later passes, which may be of another mode.
            with torch.inference_mode(False), torch.no_grad():
                levels = self.precisions.codebook(self.width).values(self.codes())
                self.made = (_by_channel(self.scale(self.width), levels) * levels).to(self._stored.dtype)
        return self.made

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)  # type: ignore[misc]
        self.made = None

    def add(self, width: int) -> None:
        """One more, its scale that of uniform levels between the same ends."""
        known, stored = self.precisions, self.precisions.stored
        scale = self.scale(stored) if stored in known.widths else self.scale(FLOAT) / (2**stored - 1)
        scales = dict(zip(known.widths, self.scales)) | {width: scale * (2**stored - 1) / (2**width - 1)}
        self.precisions = replace(known, widths=tuple(sorted(scales)))
        self.scales = torch.stack([scales[one] for one in self.precisions.widths])

    def scale(self, width: int) -> Tensor:
        """That of the weights of `width`, flat."""
        return self.scales[self.precisions.widths.index(width)]

    @property
    def _stored(self) -> Tensor:
        parameter = self._parameters["weight"]
        assert parameter is not None  # noqa: S101, for the type
        return parameter

    def codes(self) -> Tensor:
        """Those of the width (uint8), from those stored."""
        weight, precisions = self._stored.detach(), self.precisions
        if FLOAT in precisions.widths:
            stored = unit_codes(weight, self.scale(FLOAT), precisions.stored).to(torch.uint8)
        else:
            scale = self.scale(precisions.stored)
            levels = weight / _by_channel(torch.where(scale > 0, scale, 1.0), weight)
            stored = precisions.nearest(levels)
        return precisions.narrowed(stored, self.width)


def unit_codes(weight: Tensor, magnitude: Tensor, bits: int) -> Tensor:
    """Codes, as floats, of `bits` nearest to a `weight` between −`magnitude` and `magnitude`."""
    tiny = torch.finfo(weight.dtype).tiny
    return ((weight / (2 * magnitude.clamp(min=tiny)) + 0.5) * (2**bits - 1)).round()


def _by_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.dim() - 1))


def with_layers(module: nn.Module, precisions: Precisions, scales: Mapping[str, Tensor]) -> nn.Module:
    """`module`, changed so that the layers of `precisions` have a width, with `scales` (widths, 1 or out), by the names
    of their weights.

    Raises `NetworkError` where there is no such layer.
    """
    for name in precisions.parameters:
        layer = _layer(module, name)
        device = layer.weight.device
        layer.__class__ = _kind(NestedLayer, type(layer))  # type: ignore[arg-type]
        layer.precisions, layer.width = precisions, precisions.widths[-1]
        layer.register_buffer("scales", scales[name].detach().clone().to(device))
        layer.register_buffer("made", None, persistent=False)
    return module


class SwitchedBias(Switched):
    """What a layer becomes beside what it is, a Conv2d or Linear, that has one of `biases` (widths, out) for each of
    `widths`."""

    widths: tuple[int, ...]
    biases: Tensor

    @property
    def bias(self) -> Tensor:
        """That of the width."""
        return self.biases[self.widths.index(self.width)]


def with_biases(module: nn.Module, widths: tuple[int, ...], biases: Mapping[str, Tensor]) -> nn.Module:
    """`module`, changed so that the layers of these names have `biases` (widths, out)."""
    for name, entries in biases.items():
        layer = _layer(module, f"{name}.bias")
        device = layer.weight.device
        layer.__class__ = _kind(SwitchedBias, type(layer))  # type: ignore[arg-type]
        layer.widths, layer.width = widths, widths[-1]
        layer.register_buffer("biases", entries.detach().clone().to(device))
    return module


@torch.no_grad()
def without_widths(module: nn.Module) -> nn.Module:
    """`module`, changed to what it is at its width alone."""
    for layer in module.modules():
        if isinstance(layer, SwitchedBias):
            _settle(layer, "bias", ("biases",))
        if isinstance(layer, NestedLayer):
            _settle(layer, "weight", ("scales", "made"))
    return _replaced(module, SwitchedNorm, lambda norm: norm.current)


def _settle(layer: Any, parameter: str, buffers: Sequence[str]) -> None:
    """Undo the last change of its class, and let `parameter` be what it is now."""
    value = getattr(layer, parameter).clone()
    layer.__class__ = type(layer).__bases__[1]
    for name in buffers:
        delattr(layer, name)
    getattr(layer, parameter).copy_(value)


@cache
def _kind(change: type[Switched], kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"{change.__name__}{kind.__name__}", (change, kind), {})


def _replaced(module: nn.Module, kind: type, make: Any) -> nn.Module:
    # A part may have several names.
    found = [(name, part) for name, part in module.named_modules(remove_duplicate=False) if isinstance(part, kind)]
    made = {part: make(part) for _, part in found}
    for name, part in found:
        owner, _, child = name.rpartition(".")
        setattr(module.get_submodule(owner), child, made[part])
    return module


def _layer(module: nn.Module, parameter: str) -> Any:
    name = parameter.rpartition(".")[0]
    try:
        layer = module.get_submodule(name)
    except AttributeError as error:
        raise NetworkError(f"the network has no layer {name} of several widths: is it another version?") from error
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        raise NetworkError(f"expected a Conv2d or Linear layer {name} of several widths, found {type(layer).__name__}")
    return layer
