"""The network for house numbers of Any-Precision Networks (Yu et al., arXiv 1911.07346), DoReFa-Net's model A (Zhou et
al., arXiv 1606.06160) of any width."""

from collections import OrderedDict

from torch import Tensor, nn

from ldnq.errors import UsageError
from ldnq.models.registry import ModelFamily, models


class SVHNNet(nn.Module):
    """Seven convolutions of 40x40 images, whose widths grow with `expansion`, and a linear layer.

    `expansion` is 2 in Any-Precision Networks and 8 in DoReFa-Net. Raises `UsageError` where it is not a positive whole
    number.
    """

    def __init__(self, num_classes: int = 10, expansion: int = 2) -> None:
        super().__init__()
        if not isinstance(expansion, int) or expansion < 1:
            raise UsageError(f"expected an expansion of 1, 2, 3, …, got {expansion!r}")
        e = expansion
        # 40 pixels a side, 36 after the first convolution, then 18, 9, 7, 5 and 1.
        self.features = nn.Sequential(
            _block(conv=nn.Conv2d(3, 6 * e, 5), pool=nn.MaxPool2d(2)),
            _block(conv=_conv(6 * e, 8 * e, padding=1), bn=nn.BatchNorm2d(8 * e)),
            _block(conv=_conv(8 * e, 8 * e, padding=1), bn=nn.BatchNorm2d(8 * e), pool=nn.MaxPool2d(2)),
            _block(conv=_conv(8 * e, 16 * e), bn=nn.BatchNorm2d(16 * e)),
            _block(conv=_conv(16 * e, 16 * e, padding=1), bn=nn.BatchNorm2d(16 * e)),
            _block(conv=_conv(16 * e, 16 * e), bn=nn.BatchNorm2d(16 * e)),
            _block(dropout=nn.Dropout(0.5), conv=_conv(16 * e, 64 * e, 5)),
        )
        self.linear = nn.Linear(64 * e, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).flatten(1))


def _block(**parts: nn.Module) -> nn.Sequential:
    """The `parts` by name, and a ReLU."""
    return nn.Sequential(OrderedDict(parts, relu=nn.ReLU()))


def _conv(in_channels: int, channels: int, kernel_size: int = 3, padding: int = 0) -> nn.Conv2d:
    """Without a bias: most have a batch norm behind them."""
    return nn.Conv2d(in_channels, channels, kernel_size, padding=padding, bias=False)


models.add(
    "svhn-net",
    ModelFamily(
        "svhn-net",
        SVHNNet,
        image_size=40,
        default_dataset="svhn",
        summary="Any-Precision Deep Neural Networks, the network for house numbers of 40x40",
        paper="arXiv 1911.07346",
    ),
)
