"""Quantized networks small enough for every format, shared by the tests of all of them."""

import torch
from torch import nn

from ldnq.codebook import Codebook
from ldnq.quantized import QuantizedModel, QuantizedWeight


class SmallNet(nn.Module):
    """Convolutions, batch norm and a linear layer, and buffers of every kind that may lie in a state dict."""

    def __init__(self, width=6):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, groups=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, 4)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("thirds", torch.arange(5).to(torch.bfloat16) / 3)
        self.register_buffer("one_third", torch.tensor(1 / 3, dtype=torch.float64))
        self.register_buffer("nothing", torch.empty(0, 2))
        self.register_buffer("turned", torch.arange(6.0).view(2, 3).T)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


QUANTIZED = {
    "features.0.weight": (3, "layer"),
    "features.3.weight": (11, "channel"),
    "head.weight": (5, "layer"),
    "head.bias": (5, "layer"),
}


def quantize(module, chosen=QUANTIZED, **fields):
    """`module` with random codes and scales in place of the `chosen` parameters."""
    weights = {}
    for name, (levels, scale) in chosen.items():
        parameter = module.get_parameter(name)
        codes = torch.randint(levels, parameter.shape, dtype=torch.uint8)
        weights[name] = QuantizedWeight(
            codes, torch.rand(len(parameter) if scale == "channel" else 1) + 0.1, Codebook.power_of_two(levels)
        )
        with torch.no_grad():
            parameter.copy_(weights[name].dequantize())
    return QuantizedModel(module.eval(), weights, **fields)


def small_model(**fields):
    module = SmallNet()
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, 3, 9, 9))
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return quantize(module, **fields)
