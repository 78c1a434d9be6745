"""The inner parts compute where their inputs are, and what Python reads from that device, or moves to it, is counted:
each time it waits until all else is done."""

from collections import Counter

import pytest
import torch
from torch import nn

from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages
from ldnq.codebook import Bounds, Codebook
from ldnq.config import RecipeConfig
from ldnq.presets import fill_in
from ldnq.problem import LayerProblem
from ldnq.products import Products
from ldnq.recipe import apply_recipe
from ldnq.solvers import solvers
from ldnq.solvers.coordinate_descent import CoordinateDescent
from ldnq.solvers.nearest import Nearest
from tests.fake_gpu import fake_gpu

LAYERS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "1x1": {"kernel_size": 1},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
}
# Where every number that is read costs more than what it decides.
INNER = {
    "correlations",
    "unfolded",
    "walk",
    "store",
    "joints",
    "graph",
    "wiring",
    "reconstruction",
    "layerwise",
}


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@torch.no_grad()
def test_products_stay_on_the_device(options):
    with fake_gpu() as traffic:
        layer = nn.Conv2d(4, 6, device="cuda", **options)
        products = Products(layer)
        for _ in range(3):
            x = torch.empty(2, 4, 8, 8, device="cuda")
            products.add(x, layer(x))
        found = products.gram(), products.cross, products.total, products.target_total
        assert {tensor.device.type for tensor in found} == {"cuda"}
    assert not traffic.moves
    assert not traffic.reads


def solve(solver, inputs, coupled=False, bounded=False):
    """What solving a problem of so many inputs reads and moves."""
    with fake_gpu() as traffic:
        where = {"device": "cuda", "dtype": torch.float64}
        codes = torch.empty(1, 4, inputs, device="cuda", dtype=torch.uint8)
        solution = solver(
            LayerProblem(
                torch.empty(1, 4, inputs, **where),
                torch.empty(1, inputs, inputs, **where),
                Codebook.power_of_two(5),
                sensitivity=torch.empty(1, 4, 4, **where) if coupled else None,
                bounds=Bounds(codes, codes) if bounded else None,
            )
        )
        assert {solution.codes.device.type, solution.scale.device.type} == {"cuda"}
    return traffic


@pytest.mark.parametrize("coupled", [False, True], ids=["", "coupled"])
@pytest.mark.parametrize("name", list(solvers))
def test_solvers_move_only_the_levels_and_each_once(name, coupled):
    traffic = solve(solvers.get(name)(), 8, coupled, bounded=coupled)
    assert sum(traffic.moves.values()) <= 4


@pytest.mark.parametrize("name", [name for name in solvers if name != "coordinate-descent"])
def test_solvers_read_as_much_of_many_inputs_as_of_few(name):
    solver = solvers.get(name)()
    assert solve(solver, 8).reads == solve(solver, 16).reads


def test_coordinate_descent_reads_one_number_more_for_each_step_of_a_block():
    solver = CoordinateDescent((Nearest(),), block=4)
    few, many = (solve(solver, inputs).reads for inputs in (4, 12))
    assert set(many - few) == {"coordinate_descent.descend"}


def network():
    """With a batch norm, a stride and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("fast", {"solver": "nearest"}),
        ("fast", {"solver": "nearest", "quantize_bias": True, "scale": "channel"}),
        ("paper", {}),
    ],
    ids=["fast", "with biases", "paper"],
)
def test_a_run_stays_on_the_device_of_the_network(preset, options):
    images, batch = 12, 6
    recipe = fill_in(RecipeConfig(preset=preset, kbits=3, views=0, **options))
    with fake_gpu() as traffic:
        pixels = torch.zeros(images, 3, 8, 8, dtype=torch.uint8)
        calibration = CalibrationImages(
            pixels, lambda batch: batch.float(), Augmentation(8), batch, torch.device("meta")
        )
        with torch.device("meta"):
            module = network()
        state = apply_recipe(module, calibration, recipe, seed=0)
        assert {tensor.device.type for tensor in state.student.state_dict().values()} == {"meta"}
    by_file = Counter()
    for place, count in traffic.reads.items():
        by_file[place.split(".")[0]] += count
    assert not by_file.keys() & INNER
    # The energy of the outputs, once a layer.
    assert by_file["products"] == len(state.results)
    # Each weight and bias as codes and scale, and its values into the network.
    assert traffic.moves["quantized.write"] == 3 * len(state.weights)
    inner = {place: count for place, count in traffic.moves.items() if place.split(".")[0] in INNER | {"products"}}
    assert not inner
