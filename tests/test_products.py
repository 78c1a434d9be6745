"""Products of rows against those of unfolded columns in float64."""

import pytest
import torch
from torch import nn

from ldnq import graph
from ldnq.products import Strips

LAYERS = {
    "3x3": nn.Conv2d(4, 6, 3, padding=1),
    "no padding": nn.Conv2d(4, 6, 3),
    "1x1": nn.Conv2d(4, 6, 1),
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "strided along rows": nn.Conv2d(4, 6, 3, stride=(1, 2), padding=1),
    "strided along columns": nn.Conv2d(4, 6, 3, stride=(2, 1), padding=1),
    "dilated": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "5x3": nn.Conv2d(4, 6, (5, 3), padding=(2, 1)),
    "1x3": nn.Conv2d(4, 6, (1, 3), padding=(0, 1)),
    "as high as the image": nn.Conv2d(4, 6, (7, 1)),
    "even, same": nn.Conv2d(4, 6, 4, padding="same"),
    "reflected": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "grouped": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "no bias": nn.Conv2d(4, 6, 3, padding=1, bias=False),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@torch.no_grad()
def test_products_are_those_of_unfolded_columns(layer):
    x = torch.randn(5, 4, 7, 8)
    y = layer(x)
    X, Y = graph.unfold(layer, x).double(), graph.outputs_as_matrix(layer, y).double()
    strips = Strips.of(layer, layer, x, y)
    for found, expected in (
        (strips.gram(), X @ X.mT),
        (strips.cross(), Y @ X.mT),
        (strips.total(), X.sum(2, keepdim=True)),
        (strips.outputs.sum((2, 3)).unsqueeze(2), Y.sum(2, keepdim=True)),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    assert strips.positions == X.shape[2]


@torch.no_grad()
def test_products_are_exact_to_single_precision():
    layer = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    x = torch.randn(40, 16, 32, 32).relu()
    X = graph.unfold(layer, x).double()
    found = Strips.of(layer, layer, x, layer(x)).gram().double()
    assert float((found - X @ X.mT).norm() / (X @ X.mT).norm()) < 1e-6


@torch.no_grad()
def test_a_linear_layer_has_one_column_for_each_sample():
    layer = nn.Linear(4, 6)
    x = torch.randn(5, 2, 4)
    strips = Strips.of(layer, layer, x, layer(x))
    rows = x.reshape(-1, 4)
    torch.testing.assert_close(strips.gram()[0], rows.T @ rows)
    torch.testing.assert_close(strips.cross()[0], (rows @ layer.weight.T).T @ rows)
    assert strips.positions == 10
