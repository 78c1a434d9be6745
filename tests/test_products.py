"""Products by correlations and by unfolding, against those of unfolded columns in float64."""

import pytest
import torch
from torch import nn

from ldnq import graph
from ldnq.correlations import Geometry
from ldnq.products import Products

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


def columns(layer, x, y):
    """X and Y in float64, from their definition."""
    return graph.unfold(layer, x).double(), graph.as_matrix(layer, graph.without_bias(layer, y)).double()


def products(layer, *batches):
    found = Products(layer)
    for x in batches:
        found.add(x, graph.without_bias(layer, layer(x)))
    return found


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@torch.no_grad()
def test_products_are_those_of_unfolded_columns(layer):
    batches = torch.randn(5, 4, 7, 8), torch.randn(2, 4, 9, 7)
    found = products(layer, *batches)
    X, Y = (torch.cat(parts, 2) for parts in zip(*(columns(layer, x, layer(x)) for x in batches)))
    for ours, theirs in (
        (found.gram(), X @ X.mT),
        (found.cross, Y @ X.mT),
        (found.total, X.sum(2, keepdim=True)),
        (found.target_total, Y.sum(2, keepdim=True)),
    ):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert found.energy == pytest.approx(float(Y.square().sum()), rel=1e-5)
    assert found.positions == X.shape[2]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"kernel_size": 7, "padding": 3}, (2, 2)),
        ({"kernel_size": 7, "padding": 3}, (3, 3)),
        ({"kernel_size": 5, "padding": 2}, (1, 8)),
        ({"kernel_size": 5, "padding": 2}, (3, 7)),
        ({"kernel_size": 3, "padding": 1}, (1, 1)),
        ({"kernel_size": 3, "padding": 12, "dilation": 12}, (8, 8)),
        ({"kernel_size": (5, 2), "padding": 2, "dilation": (1, 6)}, (7, 4)),
        ({"kernel_size": (3, 2), "padding": (6, 6), "dilation": (2, 1)}, (4, 7)),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [2, 64])
@torch.no_grad()
def test_what_meets_nothing_but_padding_is_exactly_zero(options, size, channels):
    layer = nn.Conv2d(channels, 3, **options)
    x = torch.randn(6, channels, *size)
    X, _ = columns(layer, x, layer(x))
    found, expected = products(layer, x).gram(), X @ X.mT
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(found.diagonal(dim1=1, dim2=2) == 0, expected.diagonal(dim1=1, dim2=2) == 0)


@torch.no_grad()
def test_what_is_zero_wherever_it_is_met_is_exactly_zero():
    layer = nn.Conv2d(3, 2, 3, padding=1)
    x = torch.randn(50, 3, 9, 9)
    # The last row alone is there, which the first row of the window never meets.
    x[:, 1, :-1] = 0
    diagonal = products(layer, x).gram().diagonal(dim1=1, dim2=2).view(3, 3, 3)
    assert (diagonal[1] > 0).tolist() == [[False] * 3, [True] * 3, [True] * 3]
    assert (diagonal[[0, 2]] > 0).all()


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_products_are_exact_to_single_precision(stride):
    layer = nn.Conv2d(16, 16, 3, stride, padding=1, bias=False)
    x = torch.randn(300, 16, 32, 32).relu()
    X, Y = columns(layer, x, layer(x))
    found = products(layer, x)
    for ours, theirs in ((found.gram(), X @ X.mT), (found.cross, Y @ X.mT)):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-6


@torch.no_grad()
def test_a_linear_layer_has_one_column_for_each_sample():
    layer = nn.Linear(4, 6)
    x = torch.randn(5, 2, 4)
    found = products(layer, x)
    rows = x.reshape(-1, 4).double()
    torch.testing.assert_close(found.gram()[0], rows.T @ rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cross[0], (rows @ layer.weight.T.double()).T @ rows, rtol=1e-5, atol=1e-5)
    assert found.positions == 10


def geometry(layer, size, outputs):
    return Geometry.of(layer, torch.Size(size), torch.Size(outputs))


def test_windows_of_three_take_thirteen_products_and_a_few_of_lines():
    found = geometry(nn.Conv2d(4, 4, 3, padding=1), (58, 58), (56, 56))
    everywhere = [part for part in found.parts if part.row is None and part.column is None]
    assert len(everywhere) == 13
    assert sum(map(found.positions, found.parts)) < 14 * 58**2


def test_where_lines_are_as_many_as_places_windows_are_unfolded():
    assert geometry(nn.Conv2d(4, 4, 3), (3, 3), (1, 1)) is None
    assert geometry(nn.Conv2d(4, 4, 1), (8, 8), (8, 8)) is None
    assert geometry(nn.Conv2d(4, 4, 3, stride=2), (9, 9), (4, 4)) is None
