"""Batch norms folded into the layers before them, codes left codes."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ldnq.quantized import QuantizedModel, QuantizedWeight
from ldnq.wiring import Wiring


@torch.no_grad()
def fold_batch_norms(model: QuantizedModel) -> QuantizedModel:
    """The same network, within float32 rounding, without the batch norms that follow a layer: their gain becomes part
    of the layer's scales, one a channel, and their offset its bias. A channel of negative gain has its codes mirrored.
    """
    module = copy.deepcopy(model.module)
    wiring = Wiring(module)
    weights = dict(model.weights)
    for layer in wiring.layers:
        if norm := wiring.batch_norm_after(layer):
            weights |= _fold(module.get_submodule(layer), layer, module.get_submodule(norm), weights)
            # A bias on the codebook becomes a float one.
            weights.pop(f"{layer}.bias", None)
            module.set_submodule(norm, nn.Identity())
    provenance = {**model.provenance, "batch_norms": "folded"}
    return replace(model, module=module, weights=weights, provenance=provenance)


def _fold(
    layer: nn.Module, name: str, norm: _BatchNorm, weights: dict[str, QuantizedWeight]
) -> dict[str, QuantizedWeight]:
    """Change `layer` to do what `norm` does after it, and return its quantized weight if it has one."""
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = 0.0 if layer.bias is None else layer.bias.double()
    offset = norm.bias.double() + gain * (bias - norm.running_mean.double())
    layer.bias = nn.Parameter(offset.float(), requires_grad=False)
    key = f"{name}.weight" if name else "weight"
    if key not in weights:
        layer.weight.copy_(layer.weight * _by_channel(gain, layer.weight))
        return {}
    weight = weights[key]
    negative = _by_channel(gain, weight.codes) < 0
    mirrored = torch.where(negative, weight.codebook.num_levels - 1 - weight.codes, weight.codes)
    folded = QuantizedWeight(mirrored, weight.scale.double() * gain.abs().cpu(), weight.codebook)
    layer.weight.copy_(folded.dequantize())
    return {key: folded}


def _by_channel(values: Tensor, weight: Tensor) -> Tensor:
    return values.to(weight.device).view(-1, *[1] * (weight.dim() - 1))
