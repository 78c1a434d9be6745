"""ResNets of pre-activation blocks (He et al., Identity Mappings in Deep Residual Networks, arXiv 1603.05027)."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ldnq.errors import UsageError
from ldnq.models.registry import ModelFamily, models

PAPER = "arXiv 1603.05027"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each behind a batch norm and a ReLU, and a shortcut that nothing else touches.

    Where the shape changes the shortcut is a 1x1 convolution of what the first ReLU gives.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv1(active)
        out = self.conv2(F.relu(self.bn2(out)))
        return out + (x if self.shortcut is None else self.shortcut(active))


class Bottleneck(nn.Module):
    """As `BasicBlock`, of a 1x1, a 3x3 and a 1x1 convolution, the last four times as wide."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.shortcut = _shortcut(in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv1(active)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return out + (x if self.shortcut is None else self.shortcut(active))


class PreActResNet(nn.Sequential):
    """The `stem`, whose outputs are `width` channels, and groups of so many `blocks`, each group with half the pixels
    and twice the channels of the one before; then batch norm, ReLU, average and a linear layer."""

    def __init__(
        self,
        stem: Mapping[str, nn.Module],
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        width: int,
        num_classes: int,
    ) -> None:
        parts = OrderedDict(stem)
        inputs = width
        for group, count in enumerate(blocks):
            channels, outputs = width << group, block.expansion * width << group
            first = block(inputs, channels, 2 if group else 1)
            rest = (block(outputs, channels, 1) for _ in range(count - 1))
            parts[f"layer{group + 1}"] = nn.Sequential(first, *rest)
            inputs = outputs
        parts |= {"bn": nn.BatchNorm2d(inputs), "relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1)}
        super().__init__(parts | {"flatten": nn.Flatten(), "linear": nn.Linear(inputs, num_classes)})
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)


def preact_resnet20(num_classes: int = 10, factor: int = 1) -> PreActResNet:
    """For 32x32 images, 16·`factor`, 32·`factor` and 64·`factor` channels wide.

    Raises `UsageError` where `factor` is not a positive whole number.
    """
    if not isinstance(factor, int) or factor < 1:
        raise UsageError(f"expected a width factor of 1, 2, 3, …, got {factor!r}")
    width = 16 * factor
    stem = {"conv1": nn.Conv2d(3, width, 3, padding=1, bias=False)}
    return PreActResNet(stem, BasicBlock, (3, 3, 3), width, num_classes)


def preact_resnet50(num_classes: int = 1000) -> PreActResNet:
    """For ImageNet, with the stem and the widths of the ResNet-50 that activates behind its convolutions."""
    stem = {"conv1": nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), "maxpool": nn.MaxPool2d(3, 2, padding=1)}
    return PreActResNet(stem, Bottleneck, (3, 4, 6, 3), 64, num_classes)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Conv2d | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Conv2d(in_channels, channels, 1, stride, bias=False)


models.add(
    "preact-resnet20",
    ModelFamily(
        "preact-resnet20",
        preact_resnet20,
        image_size=32,
        default_dataset="cifar10",
        stay_float=("*.shortcut",),
        summary="Pre-activation ResNet, 20 layers for 32x32 images; five times as wide with factor=5",
        paper=PAPER,
    ),
)
models.add(
    "preact-resnet50",
    ModelFamily(
        "preact-resnet50",
        preact_resnet50,
        image_size=224,
        default_dataset="imagenet",
        resize=256,
        stay_float=("*.shortcut",),
        summary="Pre-activation ResNet, 50 layers of bottlenecks",
        paper=PAPER,
    ),
)
