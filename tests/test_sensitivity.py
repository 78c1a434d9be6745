"""One layer quantized and all others float, against a network in which exactly that is done."""

import copy
import csv

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.quantized import QuantizationState, QuantizedModel
from ldnq.sensitivity import Labels, measure_sensitivities, write_table
from ldnq.solvers.coordinate_descent import CoordinateDescent
from ldnq.solvers.nearest import Nearest
from ldnq.stages.layerwise import Layerwise


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu_()
        x = x + self.norm(self.branch(x))
        return self.head(x.relu().mean((2, 3)))


class Untraceable(Residual):
    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else x


NAMES = ("stem", "branch", "head")
X = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(5))
FAST = {"asymmetric": True, "coupling": 0.7, "solver": CoordinateDescent()}


def _images(augmentation=None):
    return CalibrationImages(X, lambda batch: batch, augmentation, 16, torch.device("cpu"))


def _state(network):
    return QuantizationState(copy.deepcopy(network), network)


def _stage(levels, **options):
    return Layerwise(**{"solver": Nearest(), "codebook": Codebook.power_of_two(levels)} | options)


def _measure(network, levels=(3, 7), labels=None, images=None, state=None, **options):
    stage = _stage(3, **options)
    generator = torch.Generator().manual_seed(0)
    state = state or _state(network)
    return list(measure_sensitivities(state, images or _images(), stage, lambda _: levels, generator, labels))


OPTIONS = {
    "as published": {},
    "as the preset fast": FAST,
    "with biases, by channel": {"asymmetric": True, "per_channel": True, "quantize_bias": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("build", [Residual, Untraceable])
@torch.no_grad()
def test_each_is_the_network_with_one_layer_quantized(build, options):
    network = build().eval()
    labels = torch.randint(5, (40,))
    found = _measure(network, labels=Labels(labels, lambda outputs: outputs), **options)
    assert [[(one.layer.name, one.num_levels) for one in trials] for trials in found] == [
        [(name, 3), (name, 7)] for name in NAMES
    ]
    expected = network(X)
    for one in (one for trials in found for one in trials):
        others = tuple(name for name in NAMES if name != one.layer.name)
        stage = _stage(one.num_levels, skip=others, **options)
        state = stage(_state(network), _images(), torch.Generator().manual_seed(0))
        outputs = state.student(X)
        divergence = F.kl_div(outputs.log_softmax(1), expected.softmax(1), reduction="batchmean")
        assert one.divergence == pytest.approx(float(divergence), rel=1e-3, abs=1e-7)
        assert one.agreement == pytest.approx(100 * float((outputs.argmax(1) == expected.argmax(1)).double().mean()))
        assert one.top1 == pytest.approx(100 * float((outputs.argmax(1) == labels).double().mean()))
        assert one.relative_error == state.results[0].relative_error
        model = QuantizedModel(state.student, state.weights)
        assert one.bits / one.weights == model.bits_per_weight


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_student_is_the_float_network_again(options):
    network = Residual().eval()
    state = _state(network)
    _measure(network, state=state, **options)
    for name, tensor in network.state_dict().items():
        assert torch.equal(state.student.state_dict()[name], tensor), name


def test_only_what_lies_behind_a_layer_runs_again():
    network = Residual().eval()
    state, calls = _state(network), []
    state.student.stem.register_forward_hook(lambda *_: calls.append(1))
    _measure(network, (3, 5, 7, 9, 11), state=state)
    # Three batches: for the one that finds the layers, on the way, and behind the stem for each number of levels.
    assert len(calls) <= 1 + 3 * (1 + 5)


@torch.no_grad()
def test_random_views_have_no_labels():
    network, images, labels = Residual().eval(), _images(Augmentation(8, True)), torch.randint(5, (40,))
    ((one,), *_) = _measure(network, (3,), Labels(labels, lambda outputs: outputs), images, views=2)
    stage = _stage(3, skip=NAMES[1:], views=2)
    student = stage(_state(network), images, torch.Generator().manual_seed(0)).student
    assert one.top1 == pytest.approx(100 * float((student(X).argmax(1) == labels).double().mean()))


def test_labels_may_be_of_some_of_the_outputs():
    network = Residual().eval()
    labels = network(X)[:, [3, 1]].argmax(1)
    ((one,), *_) = _measure(network, (11,), Labels(labels, lambda outputs: outputs[:, [3, 1]]), asymmetric=True)
    assert one.top1 > 90


def test_outputs_that_are_no_classes_have_no_agreement():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 1)).eval()
    for trials in _measure(network):
        assert [one.agreement for one in trials] == [None, None]
        assert trials[0].divergence > trials[1].divergence > 0


def test_the_table_has_a_row_for_each_layer_and_number_of_levels(tmp_path):
    found = [one for trials in _measure(Residual().eval()) for one in trials]
    write_table(found, tmp_path)
    rows = list(csv.DictReader((tmp_path / "sensitivity.csv").read_text().splitlines()))
    assert [(row["name"], row["kbits"]) for row in rows] == [(name, k) for name in NAMES for k in ("3", "7")]
    assert [float(row["divergence"]) for row in rows] == pytest.approx([one.divergence for one in found], rel=1e-5)
    assert (rows[0]["shape"], rows[0]["weights"], rows[0]["top1"]) == ("8x3x3x3", "216", "")
