"""The network for house numbers of Any-Precision Networks (Yu et al., arXiv 1911.07346), DoReFa-Net's model A (Zhou et
al., arXiv 1606.06160) of any width."""

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
            nn.Sequential(nn.Conv2d(3, 6 * e, 5), nn.MaxPool2d(2), nn.ReLU()),
            _block(6 * e, 8 * e, 1),
            _block(8 * e, 8 * e, 1, nn.MaxPool2d(2)),
            _block(8 * e, 16 * e, 0),
            _block(16 * e, 16 * e, 1),
            _block(16 * e, 16 * e, 0),
            nn.Sequential(nn.Dropout(0.5), nn.Conv2d(16 * e, 64 * e, 5, bias=False), nn.ReLU()),
        )
        self.linear = nn.Linear(64 * e, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).flatten(1))


def _block(in_channels: int, channels: int, padding: int, *pool: nn.Module) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 3, padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), *pool, nn.ReLU())


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
