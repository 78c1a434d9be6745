"""XNOR-Net: weights and activations of one bit (Rastegari et al., arXiv 1603.05279)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from ldnq.codebook import Codebook
from ldnq.quantized import QuantizedWeight
from ldnq.quantizers.inputs import Compute, InputQuantizer, kinds
from ldnq.quantizers.methods import Method, methods
from ldnq.quantizers.parametrized import Quantizer
from ldnq.quantizers.straight_through import sign, straight_through

# What says which windows of its input a convolution sees.
WINDOWS = ("kernel_size", "stride", "padding", "dilation", "groups")


@methods.register("xnor")
@dataclass(frozen=True)
class XnorNet(Method):
    """XNOR-Net: weights `α sign(w)` with one α a channel, inputs `sign(x)` behind a batch norm (arXiv 1603.05279).

    With `input_scale` outputs are multiplied by the mean magnitude of each window of the inputs.
    """

    binary: ClassVar[bool] = True
    input_scale: bool = False

    def weights(self, layer: nn.Module) -> "SignWeight":
        """Of one bit."""
        return SignWeight()

    def inputs(self, layer: nn.Module, normalized: bool) -> "SignInputs":
        """Of one bit; layers whose inputs no batch norm gives get one of their own."""
        return SignInputs(layer, norm=not normalized, scale=self.input_scale)


class SignWeight(Quantizer):
    """Latent values w to `α sign(w)`, where α is the mean |w| of an output channel (arXiv 1603.05279, section 3.1).

    The gradient is that of the output times `1/n + α·1(|w| < 1)`, n the weights of a channel. After every step
    latent values are centred over input channels and clipped to −1…1, as the authors do.
    """

    def forward(self, latent: Tensor) -> Tensor:
        return _Binary.apply(latent)

    def unrounded(self, latent: Tensor) -> Tensor:
        return latent

    def quantized(self, latent: Tensor) -> QuantizedWeight:
        codebook = Codebook.uniform(1)
        return QuantizedWeight(codebook.nearest(latent), _scale(latent), codebook)

    def clamp(self, latent: Tensor) -> None:
        """Centre and clip, in place."""
        # A single input channel would lose all that it has.
        if latent.shape[1] > 1:
            latent.sub_(latent.mean(1, keepdim=True))
        latent.clamp_(-1, 1)


@kinds.register("sign")
class SignInputs(InputQuantizer):
    """Inputs `sign(x)`, whose gradient passes where |x| < 1, behind a batch norm of their own where there is to be a
    `norm`.

    With `scale` outputs are multiplied by K, the mean |x| over all channels and each window (arXiv 1603.05279,
    section 3.2).
    """

    kind = "sign"
    bits = 1

    def __init__(self, layer: nn.Module, norm: bool, scale: bool = False) -> None:
        super().__init__()
        convolution = isinstance(layer, nn.Conv2d)
        features = layer.in_channels if convolution else layer.in_features
        self.norm = (nn.BatchNorm2d if convolution else _LastNorm)(features) if norm else nn.Identity()
        self.magnitude = _Magnitude(layer) if scale else None

    def forward(self, x: Tensor, compute: Compute) -> Tensor:
        x = self.norm(x)
        y = compute(straight_through(sign(x.detach()), F.hardtanh(x)) if self.training else sign(x))
        return y if self.magnitude is None else y * self.magnitude(x)

    def options(self) -> dict[str, Any]:
        return {"norm": not isinstance(self.norm, nn.Identity), "scale": self.magnitude is not None}


class _Magnitude(nn.Module):
    """K of the inputs of `layer`: the mean magnitude in each window, of the input channels of each group."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.windows = {name: getattr(layer, name) for name in WINDOWS} if isinstance(layer, nn.Conv2d) else {}
        self.outputs = layer.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        if not self.windows:
            return x.abs().mean(-1, keepdim=True)
        places = dict(self.windows)
        size, groups = places.pop("kernel_size"), places["groups"]
        magnitude = x.abs().unflatten(1, (groups, -1)).mean(2)
        box = torch.full((groups, 1, *size), 1 / math.prod(size), dtype=x.dtype, device=x.device)
        return F.conv2d(magnitude, box, **places).repeat_interleave(self.outputs // groups, 1)


class _LastNorm(nn.BatchNorm1d):
    """Of the last dimension, whatever is before it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view_as(x)


class _Binary(Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor) -> Tensor:
        ctx.save_for_backward(latent)
        return _scale(latent).view(-1, *[1] * (latent.dim() - 1)) * sign(latent)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (latent,) = ctx.saved_tensors
        scale = _scale(latent).view(-1, *[1] * (latent.dim() - 1))
        return gradients[0] * (1 / latent[0].numel() + scale * (latent.abs() < 1))


def _scale(latent: Tensor) -> Tensor:
    """α of every output channel (out,)."""
    return latent.abs().flatten(1).mean(1)
