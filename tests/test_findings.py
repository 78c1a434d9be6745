"""What a run leaves for its report, against counting weight by weight."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ldnq.calibration import CalibrationImages
from ldnq.config import RecipeConfig
from ldnq.data import Data
from ldnq.datasets import datasets
from ldnq.datasets.images import ArrayImages
from ldnq.evaluation import Accuracy, Predictions
from ldnq.findings import THUMBNAILS, find_details
from ldnq.preprocessing import Preprocessing
from ldnq.presets import fill_in
from ldnq.recipe import apply_recipe


def _network():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    network(torch.randn(32, 3, 8, 8) + 1)
    with torch.no_grad():
        network[1].weight.uniform_(-1, 1)
    return network.eval()


def _run(**options):
    network = _network()
    images = CalibrationImages(torch.randn(30, 3, 8, 8), lambda batch: batch, None, 16, torch.device("cpu"))
    state = apply_recipe(network, images, fill_in(RecipeConfig(preset="fast", **options)), 0)
    details = find_details(state, images, Data(datasets.get("folder"), None, None), Preprocessing(8), None, None)
    return network, state, details


@pytest.mark.parametrize("scale", ["layer", "channel"])
def test_histograms_are_of_the_float_weights_in_units_of_their_scale(scale):
    network, state, details = _run(kbits=5, scale=scale)
    layer, weight = details.layers[0], state.weights["0.weight"]
    scales = weight.scale.expand(8) if scale == "layer" else weight.scale
    values = (network[0].weight / scales.view(8, 1, 1, 1)).detach().double().numpy()
    edges = np.linspace(-layer.reach, layer.reach, len(layer.histogram) + 1)
    assert np.array_equal(layer.histogram, np.histogram(values.clip(-layer.reach, layer.reach), edges)[0])
    assert layer.reach > 2
    shares = [float((weight.codes == code).double().mean()) for code in range(5)]
    assert layer.shares == pytest.approx(shares)
    assert layer.levels.tolist() == [-2, -1, 0, 1, 2]


def test_the_solvers_errors_are_kept():
    _, state, details = _run(solver="admm")
    for layer, result in zip(details.layers, state.results, strict=True):
        assert layer.errors == pytest.approx(result.errors, rel=1e-6)
        assert len(layer.errors) > 1


def test_where_batch_norms_are_folded_the_float_weights_are_too():
    plain, folded = _run(kbits=7), _run(kbits=7, abits=8)
    ours, theirs = (details.layers[0].histogram for _, _, details in (plain, folded))
    # A channel of negative gain is mirrored together with its codes.
    network, state, _ = folded
    gain = network[1].weight / (network[1].running_var + network[1].eps).sqrt()
    weight = state.weights["0.weight"]
    values = (network[0].weight * gain.view(8, 1, 1, 1) / weight.scale.view(8, 1, 1, 1)).detach().double().numpy()
    reach = folded[2].layers[0].reach
    expected = np.histogram(values.clip(-reach, reach), len(theirs), (-reach, reach))[0]
    assert np.abs(theirs - expected).sum() <= 2  # rounding may carry one over the edge of a bin
    assert ours.sum() == theirs.sum()


def test_pictures_are_what_the_networks_saw(tmp_path):
    rng = np.random.default_rng(0)
    test = ArrayImages(rng.integers(0, 256, (40, 200, 300, 3)), np.arange(40) % 4, "abcd")
    labels = torch.arange(40) % 4
    teacher = Predictions(labels, labels, torch.linspace(0, 1, 40))
    student = Predictions(labels, (labels + 1) % 4, torch.ones(40))
    _, state, _ = _run()
    images = CalibrationImages(torch.randn(30, 3, 8, 8), lambda batch: batch, None, 16, torch.device("cpu"))
    data = Data(datasets.get("folder"), None, test)
    accuracies = (Accuracy(50, 50, 40, 4, predictions) for predictions in (teacher, student))
    details = find_details(state, images, data, Preprocessing(160), *accuracies)
    assert list(details.pictures) == list(range(39, 39 - THUMBNAILS, -1))
    for jpeg in details.pictures.values():
        assert Image.open(io.BytesIO(jpeg)).size == (96, 96)
    assert details.class_names == ("a", "b", "c", "d")
