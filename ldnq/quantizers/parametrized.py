"""Puts quantizers with gradients into any network, as parametrizations of its quantized weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ldnq.quantized import QuantizationState, QuantizedWeight


class Quantizer(nn.Module, ABC):
    """Latent values to a weight `scale · …` on or near the codebook, with gradients, as a parametrization.

    Made of the weight as it was quantized and of the float weight that it stands for. The logarithm of the scale is
    learned, so that the scale stays positive.
    """

    def __init__(self, quantized: QuantizedWeight, weight: Tensor) -> None:
        super().__init__()
        self.codebook = quantized.codebook
        self.log_scale = nn.Parameter(quantized.scale.to(weight.device).view(-1, *[1] * (weight.dim() - 1)).log())

    @abstractmethod
    def start(self, codes: Tensor, weight: Tensor) -> Tensor:
        """Latent values to begin with, of the `codes` and the float `weight` in the unit of their scale."""

    @abstractmethod
    def codes(self, latent: Tensor) -> Tensor:
        """The codes that latent values have come to."""


Trained = tuple[nn.Parameter, Quantizer]


@contextmanager
def trainable(
    state: QuantizationState, make: Callable[[QuantizedWeight, Tensor], Quantizer], names: Iterable[str] | None = None
) -> Iterator[dict[str, Trained]]:
    """While inside, the student's quantized weights (of these `names`) are computed from latent values with gradients;
    after it they are on the codebook again, also in `state.weights`. Yields latent values and quantizers by the
    weights' names."""
    places = {name: _place(state.student, name) for name in (state.weights if names is None else names)}
    order = {module: list(module._parameters) for module, _ in places.values()}
    trained = {}
    for name, (module, parameter) in places.items():
        quantized, weight = state.weights[name], state.teacher.get_parameter(name).detach()
        quantizer = make(quantized, weight)
        codes = quantized.codes.to(weight.device)
        getattr(module, parameter).data = quantizer.start(codes, weight / _fitted_scale(quantized, codes, weight))
        getattr(module, parameter).requires_grad_(True)
        parametrize.register_parametrization(module, parameter, quantizer)
        trained[name] = module.parametrizations[parameter].original, quantizer
    try:
        yield trained
    finally:
        for name, (latent, quantizer) in trained.items():
            codes = quantizer.codes(latent.detach())
            parametrize.remove_parametrizations(*places[name])
            state.write(name, QuantizedWeight(codes, quantizer.log_scale.detach().exp(), quantizer.codebook))
        for module, names in order.items():
            # Removal has put what was parametrized at the end.
            module._parameters = {name: module._parameters[name] for name in names}


def parameter_groups(module: nn.Module, weights: Mapping[str, Trained], latent_lr: float, lr: float) -> list[dict]:
    """What an optimizer of `module` learns: latent values at `latent_lr`; scales and the parameters of batch norm and
    biases at `lr`. The weights of layers that stay float are right as they are."""
    latents = [latent for latent, _ in weights.values()]
    scales = [quantizer.log_scale for _, quantizer in weights.values()]
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
