"""Weights on a codebook that can be trained: latent values, rounded in the forward pass, straight-through in the
backward pass (Bengio et al., arXiv 1308.3432), with a scale that learns along."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ldnq.quantized import QuantizationState, QuantizedWeight

# How far from the level towards the edge of its cell a latent value may start.
MARGIN = 0.9


class Rounding(nn.Module):
    """Latent values in units of the scale to `scale · level`, as a parametrization of a weight or bias.

    The gradient passes the rounding as if it were not there; `clamp` brings latent values back that have left the
    range of the levels (BinaryConnect, arXiv 1511.00363, section 2.4), after every step. While `frozen`, the codes stay
    what they were, and only the scale has a gradient.
    """

    def __init__(self, weight: QuantizedWeight, dimensions: int) -> None:
        super().__init__()
        self.codebook = weight.codebook
        self.log_scale = nn.Parameter(weight.scale.view(-1, *[1] * (dimensions - 1)).log())
        self.frozen = False

    def forward(self, latent: Tensor) -> Tensor:
        levels = self.codebook.values(self.codebook.nearest(latent.detach()), latent.dtype)
        if not self.frozen:
            levels = latent + (levels - latent).detach()
        return self.log_scale.exp() * levels

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Latent values of a weight: the weight in units of the scale."""
        return weight / self.log_scale.detach().exp()

    def start(self, codes: Tensor, weight: Tensor) -> Tensor:
        """Latent values of these `codes` as near as can be to a float `weight`, every channel of which has the scale
        that fits it best: what lies near the edge of a cell changes first."""
        levels = self.codebook.values(codes, weight.dtype)
        rows, values = (entries.reshape(len(entries), -1) for entries in (levels, weight))
        fitted = (rows * values).sum(1) / rows.square().sum(1)
        fitted = torch.where(fitted > 0, fitted, 1.0).view(-1, *[1] * (weight.dim() - 1))
        lower, upper = self.codebook.cell(codes, weight.dtype)
        return levels + MARGIN * ((weight / fitted).clamp(lower, upper) - levels)

    def clamp(self, latent: Tensor) -> None:
        """Keep latent values between the outermost levels, in place."""
        latent.clamp_(self.codebook.levels[0], self.codebook.levels[-1])


Trained = tuple[nn.Parameter, Rounding]


@contextmanager
def trainable(state: QuantizationState) -> Iterator[dict[str, Trained]]:
    """While inside, the quantized weights of the student are computed from latent values that have gradients, and start
    near the teacher's; after it they are on the codebook again, also in `state.weights`. Yields latent values and
    roundings by the weights' names."""
    places = {name: _place(state.student, name) for name in state.weights}
    order = {module: list(module._parameters) for module, _ in places.values()}
    trained = {}
    for name, (module, parameter) in places.items():
        weight = state.weights[name]
        tensor = getattr(module, parameter).requires_grad_(True)
        rounding = Rounding(weight, weight.codes.dim()).to(tensor.device)
        parametrize.register_parametrization(module, parameter, rounding)
        latent = module.parametrizations[parameter].original
        latent.data = rounding.start(weight.codes.to(latent.device), state.teacher.get_parameter(name))
        trained[name] = latent, rounding
    try:
        yield trained
    finally:
        for name, (latent, rounding) in trained.items():
            codes = rounding.codebook.nearest(latent.detach())
            parametrize.remove_parametrizations(*places[name])
            state.write(name, QuantizedWeight(codes, rounding.log_scale.detach().exp(), rounding.codebook))
        for module, names in order.items():
            # Removal has put what was parametrized at the end.
            module._parameters = {name: module._parameters[name] for name in names}


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, parameter = name.rpartition(".")
    return module.get_submodule(owner), parameter
