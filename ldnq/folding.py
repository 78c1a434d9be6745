"""Batch norms folded into the layers before them, codes left codes."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ldnq.errors import NetworkError
from ldnq.quantized import QuantizedWeight
from ldnq.wiring import Wiring

# Of the largest output.
TOLERANCE = 1e-3


@torch.no_grad()
def fold_batch_norms(
    module: nn.Module, weights: Mapping[str, QuantizedWeight], example: Tensor
) -> tuple[nn.Module, dict[str, QuantizedWeight]]:
    """The same network and its quantized weights, within float32 rounding, without the batch norms that follow a layer:
    their gain becomes part of the layer's scales, one a channel, and their offset its bias. A channel of negative gain
    has its codes mirrored. What is given is left as it is. Raises `NetworkError` where outputs of the batch `example`
    become others."""
    folded, weights = copy.deepcopy(module), dict(weights)
    for layer, norm in _pairs(folded):
        weights |= _fold(folded.get_submodule(layer), layer, folded.get_submodule(norm), weights)
        # A bias on the codebook becomes a float one.
        weights.pop(f"{layer}.bias", None)
        folded.set_submodule(norm, nn.Identity())
    expected, found = module(example), folded(example)
    if not bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max()):
        raise NetworkError("the batch norms of the network cannot be folded: its outputs become others")
    return folded, weights


def without_batch_norms(module: nn.Module) -> nn.Module:
    """`module`, changed to what `fold_batch_norms` makes of such a network, whatever the values."""
    for layer, norm in _pairs(module):
        _with_bias(module.get_submodule(layer))
        module.set_submodule(norm, nn.Identity())
    return module


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Layers that own their weight, and the batch norms after them."""
    wiring = Wiring(module)
    owners = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    for name in wiring.layers:
        layer = module.get_submodule(name)
        # Exact types: another's output may lie along another axis of its weight.
        own = type(layer) in (nn.Conv2d, nn.Linear) and owners[id(layer.weight)] == 1
        if own and (norm := wiring.batch_norm_after(name)):
            yield name, norm


def _with_bias(layer: nn.Module) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(layer.weight.shape[0]), requires_grad=False)


def _fold(
    layer: nn.Module, name: str, norm: _BatchNorm, weights: Mapping[str, QuantizedWeight]
) -> dict[str, QuantizedWeight]:
    """Change `layer` to do what `norm` does after it, and return its quantized weight if it has one."""
    _with_bias(layer)
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    layer.bias.copy_(norm.bias.double() + gain * (layer.bias.double() - norm.running_mean.double()))
    key = f"{name}.weight" if name else "weight"
    if key not in weights:
        layer.weight.copy_(layer.weight * _by_channel(gain, layer.weight))
        return {}
    folded = _scaled(weights[key], gain.cpu())
    layer.weight.copy_(folded.dequantize())
    return {key: folded}


def _scaled(weight: QuantizedWeight, gain: Tensor) -> QuantizedWeight:
    """`weight` times `gain` (channels,)."""
    codebook, by_channel = weight.codebook, _by_channel(gain, weight.codes)
    codes = torch.where(by_channel < 0, codebook.num_levels - 1 - weight.codes, weight.codes)
    scale = weight.scale.double() * gain.abs()
    if codebook.num_levels % 2:
        # A channel of nothing is zeros of any scale; runtimes divide by scales.
        codes = torch.where(by_channel == 0, codebook.num_levels // 2, codes)
        scale = torch.where(gain == 0, 1.0, scale)
    return QuantizedWeight(codes.to(torch.uint8), scale, codebook)


def _by_channel(values: Tensor, weight: Tensor) -> Tensor:
    return values.view(-1, *[1] * (weight.dim() - 1))
