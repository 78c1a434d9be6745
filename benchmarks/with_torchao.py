"""torchao's rounding to the nearest level, a scale a channel from its largest weight: no images, for scale."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from workbench import Workbench

from ldnq.calibration import CalibrationImages
from ldnq.recalibration import recalibrate


def torchao(largest: int) -> Callable[[Workbench, CalibrationImages, int], nn.Module]:
    """Every weight of a layer on the integers from −`largest` to `largest`; batch norms are recalibrated."""

    def quantize(bench: Workbench, images: CalibrationImages, seed: int) -> nn.Module:
        quantized = copy.deepcopy(bench.network.module)
        for layer in quantized.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.data = _rounded(layer.weight.data, largest)
        recalibrate(quantized, images.batches())
        return quantized.eval()

    return quantize


def _rounded(weight: torch.Tensor, largest: int) -> torch.Tensor:
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    block = (1, *weight.shape[1:])
    levels = {"quant_min": -largest, "quant_max": largest}
    scale, zero = choose_qparams_affine(weight, MappingType.SYMMETRIC, block, torch.int8, **levels)
    codes = quantize_affine(weight, block, scale, zero, torch.int8, **levels)
    return dequantize_affine(codes, block, scale, zero, torch.int8, **levels)
