"""ResNets for 32x32 images, as in He et al., Deep Residual Learning (arXiv 1512.03385), section 4.2."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldnq.errors import UsageError
from ldnq.models.registry import ModelFamily, models


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides. `x` (n, c, h, w) to (n, out, h/2, w/2)."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.before = extra_channels // 2
        self.after = extra_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or in_channels != channels:
            if option == "A":
                self.shortcut = PadShortcut(channels - in_channels)
            else:
                projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
                self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three groups of `blocks` residual blocks, `width`, 2·`width` and 4·`width` channels wide.

    Depth is 6·blocks + 2. `option` is the shortcut where the shape changes: "A" (no parameters) or "B" (1x1
    convolution). Raises `UsageError` for another option.
    """

    def __init__(self, blocks: int, num_classes: int = 10, width: int = 16, option: str = "A") -> None:
        super().__init__()
        if option not in ("A", "B"):
            raise UsageError(f"expected shortcut option A or B, got {option!r}")
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._group(width, width, blocks, 1, option)
        self.layer2 = self._group(width, 2 * width, blocks, 2, option)
        self.layer3 = self._group(2 * width, 4 * width, blocks, 2, option)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _group(in_channels: int, channels: int, blocks: int, stride: int, option: str) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride, option)
        rest = (BasicBlock(channels, channels, 1, option) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))


def _family(name: str, blocks: int, summary: str) -> ModelFamily:
    return ModelFamily(
        name,
        partial(CifarResNet, blocks),
        image_size=32,
        default_dataset="cifar10",
        summary=summary,
        paper="arXiv 1512.03385",
    )


models.add(
    "resnet20",
    _family("resnet20", 3, "Deep Residual Learning for Image Recognition, 20 layers for 32x32 images"),
)
models.add(
    "resnet32",
    _family("resnet32", 5, "Deep Residual Learning for Image Recognition, 32 layers for 32x32 images"),
)
models.add(
    "resnet44",
    _family("resnet44", 7, "Deep Residual Learning for Image Recognition, 44 layers for 32x32 images"),
)
models.add(
    "resnet56",
    _family("resnet56", 9, "Deep Residual Learning for Image Recognition, 56 layers for 32x32 images"),
)
models.add(
    "resnet110",
    _family("resnet110", 18, "Deep Residual Learning for Image Recognition, 110 layers for 32x32 images"),
)
