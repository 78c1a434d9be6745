"""Puts quantizers with gradients into any network, as parametrizations of its quantized weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ldnq.codebook import Bounds
from ldnq.quantized import QuantizationState, QuantizedWeight


class Quantizer(nn.Module, ABC):
    """Latent values to a weight on or near a codebook, with gradients, as a parametrization."""

    @abstractmethod
    def quantized(self, latent: Tensor) -> QuantizedWeight | None:
        """The codes and scales that latent values have come to; None where the weight is on no codebook."""

    @abstractmethod
    def unrounded(self, latent: Tensor) -> Tensor:
        """The weight as it would be if nothing were rounded."""

    def settled(self, latent: Tensor) -> Tensor:
        """Latent values that are the rounded weight, and become it again."""
        return self(latent)

    def clamp(self, latent: Tensor) -> None:
        """Bring back latent values that have left their range, in place, after every step."""


class ScaledQuantizer(Quantizer):
    """One whose latent values are in units of its scale, made of the weight as it was quantized and of the float weight
    that it stands for. The logarithm of the scale is learned, so that the scale stays positive. Codes stay within
    `bounds`.
    """

    def __init__(self, quantized: QuantizedWeight, weight: Tensor, bounds: Bounds | None = None) -> None:
        super().__init__()
        self.codebook = quantized.codebook
        self.bounds = bounds and bounds.map(lambda codes: codes.to(weight.device))
        self.log_scale = nn.Parameter(quantized.scale.to(weight.device).view(-1, *[1] * (weight.dim() - 1)).log())

    @abstractmethod
    def start(self, codes: Tensor, weight: Tensor) -> Tensor:
        """Latent values to begin with, of the `codes` and the float `weight` in the unit of their scale."""

    @abstractmethod
    def codes(self, latent: Tensor) -> Tensor:
        """The codes that latent values have come to."""

    def quantized(self, latent: Tensor) -> QuantizedWeight:
        """Those codes with the scale that was learned."""
        return QuantizedWeight(self.codes(latent), self.log_scale.detach().exp(), self.codebook)

    def unrounded(self, latent: Tensor) -> Tensor:
        """Latent values times the scale."""
        return latent * self.log_scale.exp()


Trained = tuple[nn.Parameter, Quantizer]


@contextmanager
def parametrized(state: QuantizationState, quantizers: Mapping[str, Quantizer]) -> Iterator[dict[str, nn.Parameter]]:
    """While inside, the student's weights of these names are computed by their quantizers from latent values, at first
    the weights' own; after it they are what the quantizers make of them, on codebooks also in `state.weights`. Yields
    the latent values by the weights' names."""
    places = {name: _place(state.student, name) for name in quantizers}
    order = {module: list(module._parameters) for module, _ in places.values()}
    latents = {}
    for name, (module, parameter) in places.items():
        getattr(module, parameter).requires_grad_(True)
        parametrize.register_parametrization(module, parameter, quantizers[name])
        latents[name] = module.parametrizations[parameter].original
    try:
        yield latents
    finally:
        for name, latent in latents.items():
            quantized = quantizers[name].quantized(latent.detach())
            parametrize.remove_parametrizations(*places[name])
            if quantized is not None:
                state.write(name, quantized)
        for module, names in order.items():
            # Removal has put what was parametrized at the end.
            module._parameters = {name: module._parameters[name] for name in names}


@contextmanager
def trainable(
    state: QuantizationState,
    make: Callable[[QuantizedWeight, Tensor, Bounds | None], ScaledQuantizer],
    names: Iterable[str] | None = None,
) -> Iterator[dict[str, Trained]]:
    """While inside, the student's quantized weights (of these `names`) are computed from latent values with gradients;
    after it they are on the codebook again, also in `state.weights`. Yields latent values and quantizers by the
    weights' names."""
    quantizers = {}
    for name in state.weights if names is None else names:
        quantized, weight = state.weights[name], state.teacher.get_parameter(name).detach()
        bounds = state.bounds(name, quantized.codebook)
        quantizers[name] = quantizer = make(quantized, weight, bounds)
        codes = quantized.codes.to(weight.device)
        latent = quantizer.start(codes, weight / _fitted_scale(quantized, codes, weight))
        state.student.get_parameter(name).data = latent
    with parametrized(state, quantizers) as latents:
        yield {name: (latent, quantizers[name]) for name, latent in latents.items()}


def parameter_groups(module: nn.Module, weights: Mapping[str, Trained], latent_lr: float, lr: float) -> list[dict]:
    """What an optimizer of `module` learns: latent values at `latent_lr`; scales and the parameters of batch norm and
    biases at `lr`. The weights of layers that stay float are right as they are."""
    latents = [latent for latent, _ in weights.values()]
    scales = [parameter for _, quantizer in weights.values() for parameter in quantizer.parameters()]
    vectors = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.dim() == 1]
    vectors = [parameter for parameter in vectors if all(parameter is not latent for latent in latents)]
    return [{"params": latents, "lr": latent_lr}, {"params": [*scales, *vectors], "lr": lr}]


def _fitted_scale(quantized: QuantizedWeight, codes: Tensor, weight: Tensor) -> Tensor:
    """The scale of every channel that brings its levels nearest to the float `weight`: batch norm may have taken up
    what tells the channels' scales apart."""
    levels, values = (
        entries.reshape(len(weight), -1) for entries in (quantized.codebook.values(codes, weight.dtype), weight)
    )
    fitted = (levels * values).sum(1) / levels.square().sum(1)
    return torch.where(fitted > 0, fitted, 1.0).view(-1, *[1] * (weight.dim() - 1))


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, parameter = name.rpartition(".")
    return module.get_submodule(owner), parameter
