"""Network in Network for 32x32 images (Lin et al., arXiv 1312.4400), as XNOR-Net and DoReFa-Net are tried on it."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from ldnq.errors import UsageError
from ldnq.models.registry import ModelFamily, models

LAYERS = 9


class Block(nn.Sequential):
    """Convolution, batch norm and ReLU; with `norm_first` batch norm, convolution and ReLU, which is the order for
    convolutions of signs: right behind a ReLU every sign would be the same.

    `shuffle` groups of channels, those of the convolution before, are interleaved first.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        groups: int = 1,
        shuffle: int = 1,
        norm_first: bool = False,
    ) -> None:
        conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, groups=groups)
        norm = nn.BatchNorm2d(in_channels if norm_first else channels)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if shuffle > 1:
            parts["shuffle"] = nn.ChannelShuffle(shuffle)
        parts |= {"norm": norm, "conv": conv} if norm_first else {"conv": conv, "norm": norm}
        super().__init__(parts | {"relu": nn.ReLU()})


class NetworkInNetwork(nn.Module):
    """Three stages of a spatial and two 1x1 convolutions, with pooling in between and an average at the end.

    `widths` are the channels of the first eight convolutions, `groups` those of all nine. Before a grouped convolution
    the groups of the one before are shuffled. `kernel_size` is that of the second stage, 5 in float networks and 3 in
    quantized ones; with `norm_first` all blocks but the first and the last begin with their batch norm, as XNOR-Net's.
    Raises `UsageError` for another number of `widths` or `groups`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        groups: Sequence[int] = (1,) * LAYERS,
        num_classes: int = 10,
        kernel_size: int = 5,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != LAYERS - 1 or len(groups) != LAYERS:
            raise UsageError(f"expected {LAYERS - 1} widths and {LAYERS} groups, got {len(widths)} and {len(groups)}")
        channels = (3, *widths, num_classes)
        sizes = (5, 1, 1, kernel_size, 1, 1, 3, 1, 1)
        blocks = [
            Block(
                channels[layer],
                channels[layer + 1],
                sizes[layer],
                groups[layer],
                shuffle=groups[layer - 1] if layer and groups[layer] > 1 else 1,
                norm_first=norm_first and 0 < layer < LAYERS - 1,
            )
            for layer in range(LAYERS)
        ]
        self.stage1 = nn.Sequential(*blocks[:3], nn.MaxPool2d(3, 2, padding=1))
        self.stage2 = nn.Sequential(*blocks[3:6], nn.AvgPool2d(3, 2, padding=1))
        self.stage3 = nn.Sequential(*blocks[6:], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        # Batch norm makes up for the scale: what it decides is how far a step turns the weights. As for the ResNets.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        return self.stage3(self.stage2(self.stage1(x)))


def _family(name: str, widths: Sequence[int], groups: Sequence[int], summary: str, paper: str) -> ModelFamily:
    return ModelFamily(
        name,
        partial(NetworkInNetwork, widths=widths, groups=groups),
        image_size=32,
        default_dataset="cifar10",
        quantized_args={"kernel_size": 3},
        binary_args={"norm_first": True},
        summary=summary,
        paper=paper,
    )


models.add(
    "nin",
    _family(
        "nin",
        (192, 160, 96, 192, 192, 192, 192, 192),
        (1,) * LAYERS,
        "Network in Network, with batch norm, for 32x32 images",
        "arXiv 1312.4400",
    ),
)
models.add(
    "nin-gc",
    _family(
        "nin-gc",
        (256, 256, 256, 512, 512, 512, 1024, 1024),
        (1, 2, 2, 16, 4, 4, 32, 8, 1),
        "Network in Network of grouped convolutions, with channel shuffle (arXiv 1707.01083)",
        "arXiv 1312.4400",
    ),
)
