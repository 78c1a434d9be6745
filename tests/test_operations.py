"""Counts of what is computed for a layer, against formulas: a guard of speed that measures no time."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ldnq import products
from ldnq.calibration import CalibrationImages
from ldnq.config import RecipeConfig
from ldnq.presets import fill_in
from ldnq.products import Products
from ldnq.recipe import apply_recipe
from ldnq.solvers import solvers
from tests.solvers.problems import make_problem

aten = torch.ops.aten
IMAGES, CHANNELS, ROWS, SIDE = 4, 8, 16, 10
# Factorizations of each layer's Gram matrix by preset: of the least-squares target, and those of the solver; error
# feedback factorizes the inverse, too.
TARGET, FACTORIZATIONS = 1, {"admm": 1, "nearest": 0, "error-feedback": 2, "coordinate-descent": 2}


def operations(layer, *size):
    """Floating-point operations of adding images of `size` to the products of `layer`: two for a multiply-accumulate,
    those of the Gram matrix, of Y Xᵀ, and of sums."""
    x = torch.randn(IMAGES, *size)
    with torch.no_grad():
        y = layer(x)
        with FlopCounterMode(display=False) as counter:
            Products(layer).add(x, y)
    found = counter.get_flop_counts()["Global"]
    return (found.get(operation, 0) for operation in (aten.bmm, aten.convolution_backward, aten.mm))


def test_a_3x3_convolution_takes_13_products_of_whole_images_and_their_borders():
    layer = nn.Conv2d(CHANNELS, ROWS, 3, padding=1, bias=False)
    gram, cross, sums = operations(layer, CHANNELS, SIDE, SIDE)
    padded = SIDE + 2
    # How far the pairs of places in the window are apart, one behind the other in memory.
    shifts = [down * padded + right for down in range(3) for right in range(-2, 3) if (down, right) >= (0, 0)]
    assert len(shifts) == 13
    everywhere = sum(IMAGES * padded**2 - shift for shift in shifts)
    # Pairs in one row lack the first row of the image or the last, at each of three distances; so with columns. Pairs
    # of a place with itself lack both, in four corners.
    borders = IMAGES * (2 * 2 * (SIDE + SIDE - 1 + SIDE - 2) + 4)
    assert gram == 2 * CHANNELS**2 * (everywhere + borders)
    assert cross == 2 * IMAGES * SIDE**2 * ROWS * CHANNELS * 9
    assert sums == 2 * IMAGES * (CHANNELS * padded**2 + ROWS * SIDE**2)
    unfolded = 2 * (9 * CHANNELS) ** 2 * IMAGES * SIDE**2
    assert gram < unfolded / 4


@pytest.mark.parametrize(
    ("options", "side"),
    [({"kernel_size": 3, "padding": 1, "stride": 2}, SIDE // 2), ({"kernel_size": 1}, SIDE)],
    ids=["strided", "1x1"],
)
def test_windows_that_share_nothing_take_the_product_of_unfolded_columns(options, side):
    layer = nn.Conv2d(CHANNELS, ROWS, bias=False, **options)
    gram, cross, _ = operations(layer, CHANNELS, SIDE, SIDE)
    d, positions = layer.weight[0].numel(), IMAGES * side**2
    assert gram == 2 * d**2 * positions
    assert cross == 2 * ROWS * d * positions


def test_groups_have_products_of_their_own():
    layer = nn.Conv2d(CHANNELS, ROWS, 1, groups=4, bias=False)
    gram, *_ = operations(layer, CHANNELS, SIDE, SIDE)
    assert gram == 2 * 4 * (CHANNELS // 4) ** 2 * IMAGES * SIDE**2


def test_a_linear_layer_takes_two_products():
    gram_and_cross, *_ = operations(nn.Linear(CHANNELS, ROWS, bias=False), CHANNELS)
    assert gram_and_cross == 2 * IMAGES * CHANNELS * (CHANNELS + ROWS)


class Calls(TorchDispatchMode):
    """Counts the operations of torch and remembers the bytes of the largest result of one."""

    def __init__(self):
        super().__init__()
        self.count, self.largest = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.count[func.overloadpacket] += 1
        if isinstance(found, torch.Tensor):
            self.largest = max(self.largest, found.untyped_storage().nbytes())
        return found


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 1, "stride": 2}], ids=["3x3", "strided"])
@torch.no_grad()
def test_nothing_is_made_that_is_larger_than_the_padded_images(options, monkeypatch):
    monkeypatch.setattr(products, "MAX_ENTRIES", 1 << 14)
    layer = nn.Conv2d(4, 4, 3, bias=False, **options)
    x = torch.randn(100, 4, 16, 16)
    y = layer(x)
    with Calls() as calls:
        Products(layer).add(x, y)
    # Unfolded it would be nine times as large.
    assert calls.largest == 4 * 100 * 4 * 18**2


@pytest.mark.parametrize("name", FACTORIZATIONS)
def test_a_solver_factorizes_as_often_as_it_should(name):
    problem = make_problem(coupled=True)
    with Calls() as calls:
        solvers.get(name)()(problem)
    assert calls.count[aten.linalg_cholesky_ex] == FACTORIZATIONS[name]


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_a_run_factorizes_each_gram_matrix_as_often_as_it_should(preset):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    images = CalibrationImages(torch.randn(8, 3, 8, 8), lambda batch: batch, None, 8, torch.device("cpu"))
    recipe = fill_in(RecipeConfig(preset=preset, kbits=3, training=False))
    with Calls() as calls:
        apply_recipe(network, images, recipe, seed=0)
    a_layer = FACTORIZATIONS[recipe.solver] + (TARGET if preset == "fast" else 0)
    assert calls.count[aten.linalg_cholesky_ex] == 3 * a_layer
