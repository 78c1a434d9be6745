import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.errors import NetworkError, UsageError
from ldnq.products import Products
from ldnq.quantized import QuantizationState
from ldnq.solvers.admm import Admm
from ldnq.solvers.coordinate_descent import CoordinateDescent
from ldnq.solvers.nearest import Nearest
from ldnq.stages.layerwise import Layerwise
from ldnq.store import Store

TERNARY = Codebook.power_of_two(3)


def _network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


def _quantize(network, **options):
    options = {"solver": Admm(), "codebook": TERNARY} | options
    images = CalibrationImages(torch.randn(24, 3, 8, 8), lambda batch: batch, None, 16, torch.device("cpu"))
    state = QuantizationState(copy.deepcopy(network), network)
    return Layerwise(**options)(state, images, torch.Generator())


@pytest.mark.parametrize("per_channel", [False, True], ids=["scale per layer", "scale per channel"])
@pytest.mark.parametrize("kbits", [3, 5, 11])
def test_every_weight_of_the_student_is_a_level_times_its_scale(kbits, per_channel):
    state = _quantize(_network(), codebook=Codebook.power_of_two(kbits), per_channel=per_channel)
    levels = [0.0] + [sign * 2.0**k for k in range(kbits // 2) for sign in (1, -1)]
    assert list(state.weights) == ["0.weight", "3.weight", "7.weight"]
    for name, quantized in state.weights.items():
        weight = state.student.get_parameter(name).detach()
        assert quantized.scale.numel() == (len(weight) if per_channel else 1)
        allowed = quantized.scale.view(-1, 1) * torch.tensor(levels)
        rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
        assert all(torch.isin(row, values).all() for row, values in zip(rows, allowed))


def test_layers_have_the_codebook_of_the_last_pattern_that_names_them():
    codebooks = {"*": Codebook.power_of_two(5), "3": Codebook.power_of_two(9), "[0]": Codebook.power_of_two(11)}
    state = _quantize(_network(), codebooks=codebooks, quantize_bias=True)
    found = {name: weight.codebook.num_levels for name, weight in state.weights.items()}
    assert found == {"0.weight": 11, "3.weight": 9, "7.weight": 5, "7.bias": 5}
    assert [len(torch.unique(state.weights[name].codes)) > 5 for name in ("0.weight", "3.weight")] == [True, True]


@pytest.mark.parametrize("skip", [(), ("7",)], ids=["no such layer", "one that is left out"])
def test_levels_for_no_layer_are_refused(skip):
    pattern = "7" if skip else "conv*"
    with pytest.raises(UsageError, match=rf"--kbits-for {pattern[:4]}.* matches none of the layers: 0, 3"):
        _quantize(_network(), codebooks={pattern: TERNARY}, skip=skip)


def test_the_teacher_is_not_touched():
    network = _network()
    before = copy.deepcopy(network.state_dict())
    _quantize(network)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@dataclass(frozen=True)
class Recording:
    """A solver that keeps the problems it is given."""

    problems: list = field(default_factory=list)

    def __call__(self, problem):
        self.problems.append(problem)
        return Nearest()(problem)


def test_later_layers_are_fitted_to_inputs_from_the_quantized_ones():
    solver = Recording()
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.randn(40, 6)
    images = CalibrationImages(x, lambda batch: batch, None, 16, torch.device("cpu"))
    state = Layerwise(solver, TERNARY)(QuantizationState(copy.deepcopy(network), network), images, torch.Generator())
    with torch.no_grad():
        float_inputs, quantized_inputs = network[:2](x).double(), state.student[:2](x).double()
    gram = solver.problems[1].gram[0]
    torch.testing.assert_close(gram, quantized_inputs.T @ quantized_inputs / 40, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(gram, float_inputs.T @ float_inputs / 40, rtol=1e-2)


def test_admm_reconstructs_better_than_rounding():
    network = _network()
    admm, nearest = _quantize(network), _quantize(network, solver=Nearest())
    assert admm.results[0].relative_error < nearest.results[0].relative_error


def test_the_reported_error_is_that_of_the_output():
    network = _network()
    torch.manual_seed(1)
    images = torch.randn(24, 3, 8, 8)
    state = QuantizationState(copy.deepcopy(network), network)
    calibration = CalibrationImages(images, lambda batch: batch, None, 16, torch.device("cpu"))
    state = Layerwise(Admm(), TERNARY)(state, calibration, torch.Generator())
    with torch.no_grad():
        target, found = (n[:4](images) - n[3].bias[:, None, None] for n in (network, state.student))
    expected = (target - found).square().sum() / target.square().sum()
    assert state.results[1].relative_error == pytest.approx(float(expected), rel=1e-4)


def test_a_quantized_bias_shares_the_codebook_and_scale_of_its_layer():
    state = _quantize(_network(), quantize_bias=True)
    assert torch.equal(state.weights["7.bias"].scale, state.weights["7.weight"].scale)
    assert torch.equal(state.student[7].bias.detach(), state.weights["7.bias"].dequantize())
    assert "0.bias" not in state.weights


def test_skipped_layers_stay_as_they_were_and_are_listed():
    network = _network()
    state = _quantize(network, skip=("3",), keep_first_last=False)
    assert torch.equal(state.student[3].weight, network[3].weight)
    assert [(layer.name, layer.reason) for layer in state.skipped] == [("3", "--skip 3")]
    ends = _quantize(network, keep_first_last=True)
    assert list(ends.weights) == ["3.weight"]


def test_a_pattern_without_a_match_is_refused():
    with pytest.raises(UsageError, match=r"--skip conv\* matches none of the layers: 0, 3, 7"):
        _quantize(_network(), skip=("conv*",))


def test_a_network_without_layers_is_refused():
    with pytest.raises(NetworkError, match="at least one Conv2d or Linear"):
        _quantize(nn.Sequential(nn.ReLU(), nn.Flatten()))


def test_dead_inputs_and_too_few_positions_are_said_aloud(caplog):
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        network[0].weight[2] = 0
        network[0].bias[2] = -1
    images = CalibrationImages(torch.randn(4, 6), lambda batch: batch, None, 16, torch.device("cpu"))
    state = QuantizationState(copy.deepcopy(network), network)
    with caplog.at_level("INFO", logger="ldnq"):
        state = Layerwise(Admm(), TERNARY, quantize_bias=False)(state, images, torch.Generator())
    assert "0: 4 positions for 6 inputs leave its Gram matrix singular" in caplog.text
    assert "2: 1 of 5 inputs are always zero" in caplog.text
    assert all(torch.isfinite(weight.scale).all() for weight in state.weights.values())


class Residual(nn.Module):
    """Two blocks and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.linear = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu()
        for conv, norm in zip(self.convs, self.norms):
            x = (norm(conv(x)) + x).relu()
        return self.linear(x.mean((2, 3)))


def _residual():
    network = Residual()
    for _ in range(20):
        network(torch.randn(32, 3, 8, 8) + 0.5)
    return network.eval()


def _distance(network, state, x):
    with torch.no_grad():
        return float((network(x) - state.student(x)).square().mean())


@pytest.mark.parametrize(("views", "rounds"), [(0, 0), (2, 2), (None, 20)], ids=["none", "two", "as many as make 500"])
def test_random_views_stand_beside_the_images(views, rounds):
    seen = []

    def augmentation(batch, generator):
        seen.append(len(batch))
        return batch

    images = CalibrationImages(torch.randn(24, 3, 8, 8), lambda batch: batch, augmentation, 16, torch.device("cpu"))
    state = QuantizationState(copy.deepcopy(_network()), _network())
    Layerwise(Nearest(), TERNARY, views=views)(state, images, torch.Generator())
    assert sum(seen) == rounds * 24


@pytest.mark.parametrize("per_channel", [False, True], ids=["scale per layer", "scale per channel"])
def test_asymmetric_reconstruction_brings_the_outputs_nearer_to_the_teachers(per_channel):
    torch.manual_seed(3)
    network = _residual()
    x = torch.randn(64, 3, 8, 8) + 0.5
    torch.manual_seed(0)
    symmetric = _quantize(network, per_channel=per_channel)
    torch.manual_seed(0)
    asymmetric = _quantize(network, per_channel=per_channel, asymmetric=True)
    assert _distance(network, asymmetric, x) < 0.8 * _distance(network, symmetric, x)
    assert all(w.scale.numel() == (len(w.codes) if per_channel else 1) for w in asymmetric.weights.values())


def test_asymmetric_reconstruction_centres_the_logits():
    torch.manual_seed(3)
    network = _residual()
    images = torch.randn(48, 3, 8, 8) + 0.5
    calibration = CalibrationImages(images, lambda batch: batch, None, 16, torch.device("cpu"))
    state = QuantizationState(copy.deepcopy(network), network)
    state = Layerwise(Admm(), TERNARY, asymmetric=True)(state, calibration, torch.Generator())
    with torch.no_grad():
        torch.testing.assert_close(state.student(images).mean(0), network(images).mean(0), rtol=1e-3, atol=1e-4)


def test_a_quantized_bias_is_part_of_the_asymmetric_target():
    torch.manual_seed(3)
    network = _residual()
    x = torch.randn(64, 3, 8, 8) + 0.5
    options = dict(codebook=Codebook.power_of_two(11), quantize_bias=True)
    torch.manual_seed(0)
    symmetric = _quantize(network, **options)
    torch.manual_seed(0)
    state = _quantize(network, **options, asymmetric=True)
    assert torch.equal(state.student.linear.bias.detach(), state.weights["linear.bias"].dequantize())
    assert _distance(network, state, x) < 0.8 * _distance(network, symmetric, x)


def test_coupled_outputs_keep_what_the_network_feels_of_them():
    # The network's output is the sum of the layer's: errors that cancel in it do not matter.
    torch.manual_seed(0)
    last = nn.Linear(16, 3)
    with torch.no_grad():
        last.weight.copy_(last.weight[:, :1].expand(3, 16))
    network = nn.Sequential(nn.Linear(12, 16), last).eval()
    x = torch.randn(200, 12)
    images = CalibrationImages(x, lambda batch: batch, None, 64, torch.device("cpu"))

    def error(coupling):
        stage = Layerwise(CoordinateDescent(), TERNARY, skip=("1",), asymmetric=True, coupling=coupling)
        student = stage(QuantizationState(copy.deepcopy(network), network), images, torch.Generator()).student
        with torch.no_grad():
            return float((student(x) - network(x)).square().mean())

    assert error(0.9) < 0.5 * error(0.0)


def test_the_solver_is_told_of_the_share_of_the_coupling():
    def told(**options):
        torch.manual_seed(0)
        solver = Recording()
        _quantize(_network(), solver=solver, asymmetric=True, **options)
        return [problem.sensitivity for problem in solver.problems]

    assert told() == [None, None, None]
    halves, wholes = told(coupling=0.5), told(coupling=1.0)
    assert [half.shape for half in halves] == [(1, 8, 8), (2, 4, 4), (1, 5, 5)]
    for half, whole in zip(halves, wholes):
        share = 0.5 + 0.5 * torch.eye(half.shape[-1], dtype=torch.float64)
        torch.testing.assert_close(half, share * whole)


def test_batch_norm_takes_the_gain_of_least_squares_whatever_the_solver():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)).eval()
    # Inputs that go together: the scale that fits the weights is not the one that fits the outputs.
    x = torch.randn(64, 3, 8, 8) + 2 * torch.randn(64, 1, 1, 1)
    images = CalibrationImages(x, lambda batch: batch, None, 64, torch.device("cpu"))
    stage = Layerwise(Nearest(), TERNARY, asymmetric=True, damping=1e-6)
    student = stage(QuantizationState(copy.deepcopy(network), network), images, torch.Generator()).student
    with torch.no_grad():
        ours, theirs = (module(x).transpose(0, 1).flatten(1) for module in (student, network))
    ours, theirs = (outputs - outputs.mean(1, keepdim=True) for outputs in (ours, theirs))
    slopes = (ours * theirs).sum(1) / ours.square().sum(1)
    torch.testing.assert_close(slopes, torch.ones(8), rtol=1e-3, atol=0)


def test_layers_with_positions_to_spare_take_some_of_the_images(monkeypatch):
    taken = []
    add = Products.add
    monkeypatch.setattr(Products, "add", lambda self, x, y: (taken.append(len(x)), add(self, x, y)))
    # 24 images in batches of 16 and 8, with 64, 36 and 1 positions each: 1,536, 864 and 24.
    _quantize(_network(), solver=Nearest(), gram_samples=400)
    assert taken == [6, 3, 8, 4, 16, 8]
    taken.clear()
    _quantize(_network(), solver=Nearest())
    assert taken == [16, 8] * 3


def test_values_that_memory_has_no_room_for_change_nothing(monkeypatch):
    written = []
    write = Store.write
    monkeypatch.setattr(Store, "write", lambda self, data: (written.append(len(data)), write(self, data))[1])
    network, images = _residual().eval(), torch.randn(24, 3, 8, 8)

    def student(max_memory):
        device = torch.device("cpu")
        calibration = CalibrationImages(images, lambda batch: batch, None, 16, device, max_memory=max_memory)
        state = QuantizationState(copy.deepcopy(network), network)
        return Layerwise(Admm(), TERNARY, asymmetric=True)(state, calibration, torch.Generator()).student

    expected = student(1000).state_dict()
    assert not written
    found = student(0.001).state_dict()
    assert written
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
