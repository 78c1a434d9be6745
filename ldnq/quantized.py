"""Quantized weights, the state that stages hand on, and the network that comes out."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ldnq.codebook import Bounds, Codebook
from ldnq.config import FLOAT
from ldnq.errors import NetworkError, UsageError
from ldnq.graph import Layer, SkippedLayer
from ldnq.grid import Grid
from ldnq.nesting import Nest
from ldnq.precisions import Precisions
from ldnq.preprocessing import Preprocessing
from ldnq.switching import NestedLayer, Switched, switched, without_widths


@dataclass(frozen=True)
class QuantizedWeight:
    """A parameter as `codes` (its shape, uint8) and `scale` (flat float32; one element, or one per
    output channel)."""

    codes: Tensor
    scale: Tensor
    codebook: Codebook

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", self.scale.flatten().float())
        if self.scale.numel() not in (1, *self.codes.shape[:1]):
            raise UsageError(f"expected one scale or one a channel, got {self.scale.numel()} for {self.codes.shape}")

    def dequantize(self) -> Tensor:
        """`scale · levels[codes]`, float32 in the parameter's shape."""
        scale = self.scale.view(-1, *[1] * (self.codes.dim() - 1))
        return scale * self.codebook.values(self.codes)

    @property
    def bits(self) -> float:
        """Of all codes, log2(levels) each, and 32 for each scale."""
        return self.codes.numel() * self.codebook.bits + 32 * self.scale.numel()

    @property
    def zero_fraction(self) -> float:
        """The share of weights that are zero."""
        return float((self.codebook.values(self.codes) == 0).double().mean())


@dataclass(frozen=True)
class LayerResult:
    """How a `layer` was quantized by itself; stages that follow may change its weights once more. `errors` are the
    solver's by iteration, the first before any; a layer that was trained has none, and its other numbers are NaN."""

    layer: Layer
    relative_error: float = math.nan
    errors: tuple[float, ...] = ()
    seconds: float = math.nan

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise of the layer's outputs in decibels, infinite where there is no noise."""
        return math.inf if self.relative_error == 0 else -10 * math.log10(self.relative_error)


class Journal:
    """Told how far a run is; this one keeps nothing, that of `ldnq.journal` a file."""

    def restore(self, state: "QuantizationState", generator: torch.Generator) -> int:
        """Bring both to where an interrupted run was in its stage of the number returned."""
        return 0

    def begin(self, stage: int, state: "QuantizationState", generator: torch.Generator) -> None:
        """The stage of this number begins."""

    def catch_up(self, generator: torch.Generator) -> None:
        """The stage has drawn what it needs before its first layer."""

    def note(self, state: "QuantizationState", generator: torch.Generator) -> None:
        """A layer is finished: nothing before it will change."""


@dataclass
class QuantizationState:
    """What one stage leaves to the next: a `student` that runs, its `teacher`, and the parameters quantized so far.

    `weights` is keyed by the parameter's name in the state dict; the student holds the same values dequantized, and
    nothing may change them. `folded` tells that batch norms have become part of the layers before them, `grids` which
    activations of the student are rounded, `inputs` which layers round their inputs, and how, `precisions` at which
    widths the student runs, if at several. Layers among the `results` are finished; stages tell the `journal`.
    Parameters with `nests` have codes that fit into these.
    """

    student: nn.Module
    teacher: nn.Module
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    results: list[LayerResult] = field(default_factory=list)
    skipped: list[SkippedLayer] = field(default_factory=list)
    folded: bool = False
    grids: dict[str, Grid] = field(default_factory=dict)
    inputs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    precisions: Precisions | None = None
    journal: Journal = field(default_factory=Journal)
    nests: Mapping[str, Nest] = field(default_factory=dict)

    def bounds(self, name: str, codebook: Codebook) -> Bounds | None:
        """What the codes of the parameter `name` on `codebook` may be, if not all."""
        nest = self.nests.get(name)
        return nest.on(codebook.num_levels) if nest else None

    @torch.no_grad()
    def write(self, name: str, weight: QuantizedWeight) -> None:
        """Put `weight` in the place of the student's parameter `name` and freeze it; kept on the CPU."""
        weight = replace(weight, codes=weight.codes.cpu(), scale=weight.scale.cpu())
        parameter = self.student.get_parameter(name)
        parameter.copy_(weight.dequantize())
        parameter.requires_grad_(False)
        self.weights[name] = weight


@dataclass
class QuantizedModel:
    """A network with quantized weights: `module` runs on its own, with the weights dequantized to float.

    `model` and `model_args` say how to build it again (empty for a network that only exists in the caller's code):
    then layers round their `inputs`, its batch norms are `folded`, and activations are put on `grids`. A network of
    several widths says so in `precisions`: its `weights` are those stored, and at first it runs at the widest.
    `provenance` is free-form data about how it came to be.
    """

    module: nn.Module
    weights: Mapping[str, QuantizedWeight]
    model: str = ""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    folded: bool = False
    grids: Mapping[str, Grid] = field(default_factory=dict)
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    precisions: Precisions | None = None
    _switched: list[Switched] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        for name, weight in self.weights.items():
            if name not in parameters or parameters[name].shape != weight.codes.shape:
                found = tuple(parameters[name].shape) if name in parameters else "nothing"
                raise NetworkError(
                    f"expected a parameter {name} of shape {tuple(weight.codes.shape)} in the network, found {found}"
                )

    def set_bits(self, bits: int) -> None:
        """Run at `bits` from now on; raises `UsageError` where the network does not have this width."""
        self._switch(bits, "bits")

    def set_kbits(self, kbits: int) -> None:
        """Run at `kbits` levels from now on; raises `UsageError` where the network does not have so many."""
        self._switch(kbits, "kbits")

    def at(self, bits: int | None = None, kbits: int | None = None) -> "QuantizedModel":
        """A copy that has one width alone; raises as `set_bits` and `set_kbits`, and `UsageError` where both are given
        or neither."""
        if (bits is None) == (kbits is None):
            raise UsageError(f"expected bits or kbits, got bits {bits} and kbits {kbits}")
        model = copy.deepcopy(self)
        model.set_bits(bits) if bits is not None else model.set_kbits(kbits or 0)
        layers = {name: part for name, part in model.module.named_modules() if isinstance(part, NestedLayer)}
        floats = dict.fromkeys(layers, "weights of 32 bits") if bits == FLOAT else {}
        left = self.provenance.get("left_float", {})
        return replace(
            model,
            weights={} if bits == FLOAT else {f"{name}.weight": _quantized(layer) for name, layer in layers.items()},
            module=without_widths(model.module),
            inputs={name: {**spec, "bits": bits} for name, spec in self.inputs.items()},
            provenance=_alone(self.provenance, bits or kbits or 0) | {"left_float": floats | left},
            precisions=None,
        )

    def widest(self) -> "QuantizedModel":
        """Itself, or of several widths the widest alone."""
        return self if self.precisions is None else self.at(**{self.precisions.unit: self.precisions.widths[-1]})

    def _switch(self, width: int, unit: str) -> None:
        if self.precisions is None:
            raise UsageError("expected a network of several widths, as method any-precision leaves, found one of one")
        self.precisions.check(width, unit)
        # Looking for them takes longer than switching them.
        self._switched = self._switched or switched(self.module)
        for part in self._switched:
            part.switch(width)

    @property
    def rounds_activations(self) -> bool:
        """Whether values between layers are rounded too: what differs by little before may differ by a step after."""
        return bool(self.grids or self.inputs)

    @property
    def float_bytes(self) -> int:
        """Size of the network's parameters and buffers as stored for float inference, at one width."""
        state = self.widest().module.state_dict()
        return sum(tensor.numel() * tensor.element_size() for tensor in state.values())

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a quantized parameter: log2(levels) of each code, and 32 for each scale."""
        count = sum(weight.codes.numel() for weight in self.weights.values())
        return sum(weight.bits for weight in self.weights.values()) / max(count, 1)


def _quantized(layer: NestedLayer) -> QuantizedWeight:
    """The weights of its width."""
    return QuantizedWeight(layer.codes(), layer.scale(layer.width), layer.precisions.codebook(layer.width))


def _alone(provenance: Mapping[str, Any], width: int) -> dict[str, Any]:
    """What is known of one width of several."""
    accuracies = provenance.get("top1_at") or {}
    several = {"top1_at", "bits", "kbits", "levels", "supervision", "quantized_top5", "top1_drop"}
    found = {name: value for name, value in provenance.items() if name not in several}
    return found | {"quantized_top1": accuracies.get(str(width))}
