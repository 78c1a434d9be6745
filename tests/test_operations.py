"""Counts of what is computed for a layer, against formulas: a guard of speed that measures no time."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ldnq import products, unfolded
from ldnq.calibration import CalibrationImages
from ldnq.config import RecipeConfig
from ldnq.presets import fill_in
from ldnq.products import Products
from ldnq.recipe import apply_recipe
from ldnq.solvers import solvers
from tests.solvers.problems import make_problem

aten = torch.ops.aten
IMAGES, CHANNELS, ROWS, SIDE = 4, 8, 16, 10
# Factorizations of matrices of each layer: for the least-squares target its Gram matrix, then those of the solver, of
# which two factorize the sensitivity of its outputs as well.
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
    return [found.get(operation, 0) for operation in (aten.bmm, aten.convolution_backward, aten.mm)]


def half(d):
    """Entries of a Gram matrix of d inputs that are made: those in blocks on the diagonal and to their right."""
    step = max(unfolded.ROWS, -(-d // unfolded.SHARE))
    return sum(min(step, d - start) * (d - start) for start in range(0, d, step))


def test_a_3x3_convolution_takes_13_products_of_whole_images_and_their_borders():
    layer = nn.Conv2d(CHANNELS, ROWS, 3, padding=1, bias=False)
    gram, cross, sums = operations(layer, CHANNELS, SIDE, SIDE)
    padded = SIDE + 2
    # How far the pairs of places in the window are apart.
    shifts = [(down, right) for down in range(3) for right in range(-2, 3) if (down, right) >= (0, 0)]
    assert len(shifts) == 13
    # Of all images the rows that a shift leaves, columns of zeros between them, in one piece.
    everywhere = sum((SIDE - down) * IMAGES * padded - abs(right) for down, right in shifts)
    # Pairs in one row lack the first row of the image or the last, at each of three distances; so with columns. Pairs
    # of a place with itself lack both, in four corners.
    rows, columns = (2 * sum(size - far for far in range(3)) for size in (IMAGES * padded, SIDE))
    assert gram == 2 * CHANNELS**2 * (everywhere + rows + IMAGES * (columns + 4))
    assert cross == 2 * IMAGES * SIDE**2 * ROWS * CHANNELS * 9
    assert sums == 2 * IMAGES * (CHANNELS * padded**2 + ROWS * SIDE**2)
    assert gram < 2 * (9 * CHANNELS) ** 2 * IMAGES * SIDE**2 / 4


def test_where_channels_are_many_no_zeros_are_multiplied():
    channels, side = 64, 4
    gram, *_ = operations(nn.Conv2d(channels, ROWS, 3, padding=1, bias=False), channels, side, side)
    shifts = [(down, right) for down in range(3) for right in range(-2, 3) if (down, right) >= (0, 0)]
    everywhere = sum((side - down) * (side - abs(right)) for down, right in shifts)
    borders = 2 * 2 * sum(side - far for far in range(3)) + 4
    assert gram == 2 * channels**2 * IMAGES * (everywhere + borders)


def test_of_windows_that_share_nothing_one_half_is_made():
    layer = nn.Conv2d(CHANNELS, ROWS, 3, padding=1, stride=2, bias=False)
    gram, cross, _ = operations(layer, CHANNELS, SIDE, SIDE)
    d, positions = layer.weight[0].numel(), IMAGES * (SIDE // 2) ** 2
    assert half(d) < 0.91 * d**2
    assert gram == 2 * half(d) * positions
    assert cross == 2 * ROWS * d * positions


@pytest.mark.parametrize(
    ("layer", "size", "positions"),
    [
        (nn.Conv2d(200, ROWS, 1, bias=False), (200, SIDE, SIDE), SIDE**2),
        (nn.Conv2d(CHANNELS, ROWS, 1, groups=4, bias=False), (CHANNELS, SIDE, SIDE), SIDE**2),
        (nn.Linear(200, ROWS, bias=False), (200,), 1),
    ],
    ids=["1x1", "grouped", "linear"],
)
def test_what_is_met_once_takes_two_products_and_sums(layer, size, positions):
    groups, d = getattr(layer, "groups", 1), layer.weight[0].numel()
    expected = groups * half(d) + ROWS * d + groups * d + ROWS
    assert sum(operations(layer, *size)) == 2 * IMAGES * positions * expected


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
def test_a_run_factorizes_each_matrix_as_often_as_it_should(preset):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    images = CalibrationImages(torch.randn(8, 3, 8, 8), lambda batch: batch, None, 8, torch.device("cpu"))
    recipe = fill_in(RecipeConfig(preset=preset, kbits=3, training=False))
    with Calls() as calls:
        apply_recipe(network, images, recipe, seed=0)
    a_layer = FACTORIZATIONS[recipe.solver] + (TARGET if preset == "fast" else 0)
    assert calls.count[aten.linalg_cholesky_ex] == 3 * a_layer
