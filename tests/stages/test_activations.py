"""Activations on grids, against the formula of ONNX and against onnxruntime."""

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from ldnq import load, quantize
from ldnq.calibration import CalibrationImages
from ldnq.errors import NetworkError, UsageError
from ldnq.export import export
from ldnq.folding import fold_batch_norms
from ldnq.formats import formats, h5
from ldnq.grid import Grid
from ldnq.quantized import QuantizationState
from ldnq.quantizers.activations import ActivationQuantizer, points, trace, with_grids
from ldnq.stages.activations import ActivationRanges


class Residual(nn.Module):
    """Pooling, a block with a sum, a part that is only moved, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(self.norm(self.stem(x)).relu())
        x = torch.relu(x + self.norm2(self.conv(x)))
        return self.head(self.drop(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)))


@pytest.fixture
def network():
    module = Residual()
    with torch.no_grad():
        for _ in range(5):
            module(torch.randn(16, 3, 12, 12))
        for norm in (module.norm, module.norm2):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    return module.eval()


IMAGES = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def _quantize(network, abits=8, **options):
    return quantize(network, [IMAGES], kbits=7, preset="fast", abits=abits, **options)


@pytest.mark.parametrize("bits", range(4, 9))
@pytest.mark.parametrize("zero_point", [0, 3])
def test_a_grid_is_that_of_quantize_linear(bits, zero_point):
    grid = Grid(0.1, zero_point, bits)
    x = torch.cat([torch.linspace(-3, 40, 1001), torch.tensor([0.05, 0.15, 0.25, -0.05])])
    scale = np.float32(0.1)
    integers = np.clip(np.rint(x.numpy() / scale) + zero_point, 0, 2**bits - 1)
    expected = ((integers - zero_point) * scale).astype(np.float32)
    np.testing.assert_array_equal(ActivationQuantizer(grid)(x).numpy(), expected)


def test_every_result_gets_a_grid_but_outputs_and_what_is_clipped(network):
    found = points(trace(fold_batch_norms(network, {}, IMAGES)[0]), IMAGES[:2])
    assert found == {
        "x": "x",
        "relu": "relu",  # not the convolution before it
        "pool": "relu",  # moves what it is given
        "conv": "conv",
        "relu_1": "relu_1",  # not the sum before it
        "adaptive_avg_pool2d": "adaptive_avg_pool2d",
        "flatten": "adaptive_avg_pool2d",
    }  # fmt: skip


def test_activations_lie_on_their_grids_after_a_relu_without_an_offset(network):
    model = _quantize(network, 5)
    seen = {}
    for name, module in model.module.named_modules():
        if isinstance(module, ActivationQuantizer):
            module.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, (m.grid, o)))
    model.module(IMAGES)
    assert len(seen) == len(model.grids) == 7
    for grid, values in seen.values():
        steps = values / grid.scale
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        assert len(values.unique()) <= 32
    assert model.grids["relu"].zero_point == 0 < model.grids["x"].zero_point


@pytest.mark.parametrize("ranges", ["least-squares", "percentile"])
def test_more_bits_come_nearer_to_float_activations(network, ranges):
    expected = quantize(network, [IMAGES], kbits=7, preset="fast").module(IMAGES)
    errors = [float((_quantize(network, b, ranges=ranges).module(IMAGES) - expected).norm()) for b in (4, 5, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 * float(expected.norm())


def test_least_squares_is_not_worse_than_the_whole_range():
    stage, values = ActivationRanges(4), torch.randn(20_000).relu()
    values[0] = 40.0

    def error(grid):
        return float((ActivationQuantizer(grid)(values) - values).square().mean())

    assert error(stage._grid(values)) < 0.5 * error(stage._between(0.0, 40.0))
    shares = [stage._between(0.0, 40.0 * share) for share in np.linspace(0.2, 1, 60)]
    assert error(stage._grid(values)) == pytest.approx(min(map(error, shares)), rel=1e-4)


def test_weights_keep_their_codes_and_biases_lie_on_the_grid_of_products(network):
    plain, model = quantize(network, [IMAGES], kbits=7, preset="fast"), _quantize(network)
    assert torch.equal(plain.weights["conv.weight"].codes, model.weights["conv.weight"].codes)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.module.modules())
    unit = model.weights["conv.weight"].scale * model.grids["pool"].scale
    steps = model.module.get_parameter("conv.bias") / unit
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["h5", "onnx", "safetensors"])
def test_a_file_gives_the_same_outputs_bit_for_bit(network, name, tmp_path):
    model = _quantize(network)
    path = tmp_path / f"model.{name}"
    if name == "h5":
        h5.save(model, path)
    else:
        export(model, path, formats.get(name)(), IMAGES)
    loaded = load(path, Residual())
    assert (loaded.grids, loaded.folded) == (model.grids, True)
    with torch.no_grad():
        assert torch.equal(loaded.module(IMAGES), model.module(IMAGES))


def test_onnxruntime_computes_every_layer_with_integers(network, tmp_path):
    model, form, path = _quantize(network), formats.get("onnx")(), tmp_path / "model.onnx"
    exported = export(model, path, form, IMAGES)
    assert exported.agreed >= 39
    assert form.remarks(path, model) == [("integer layers", "3 of 3, as onnxruntime runs them")]
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QuantizeLinear") == 7
    plain = quantize(network, [IMAGES], kbits=7, preset="fast")
    export(plain, path, form, IMAGES)
    assert form.remarks(path, plain) == []


def test_fewer_bits_are_computed_with_integers_too(network, tmp_path):
    model, form, path = _quantize(network, 4), formats.get("onnx")(), tmp_path / "model.onnx"
    export(model, path, form, IMAGES)
    assert form.remarks(path, model) == [("integer layers", "3 of 3, as onnxruntime runs them")]
    export(model, tmp_path / "model.pt2", formats.get("torch-export")(), IMAGES)


def test_a_layer_that_stays_float_is_computed_with_floats(network, tmp_path):
    model, form, path = _quantize(network, skip=("stem",)), formats.get("onnx")(), tmp_path / "model.onnx"
    export(model, path, form, IMAGES)
    assert form.remarks(path, model) == [
        ("integer layers", "2 of 3, as onnxruntime runs them"),
        ("float layers", "stem"),
    ]
    loaded = load(path, Residual())
    with torch.no_grad():
        assert torch.equal(loaded.module(IMAGES), model.module(IMAGES))


class Shuffled(nn.Module):
    """Half of the channels go through a layer, then all are shuffled, as in ShuffleNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        kept, worked = torch.relu(self.stem(x)).chunk(2, dim=1)
        x = torch.cat([kept, torch.relu(self.branch(worked))], dim=1)
        n, _, h, w = x.shape
        x = x.view(n, 2, 4, h, w).transpose(1, 2).reshape(n, 8, h, w)
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def test_layers_behind_a_split_are_computed_with_integers(tmp_path):
    model, form, path = _quantize(Shuffled().eval()), formats.get("onnx")(), tmp_path / "model.onnx"
    export(model, path, form, IMAGES)
    assert form.remarks(path, model) == [("integer layers", "4 of 4, as onnxruntime runs them")]
    assert model.grids["getitem"] == model.grids["getitem_1"] == model.grids["relu"]


@pytest.mark.parametrize("kind", ["int4", "int2", "float"])
def test_integer_arithmetic_needs_weights_of_eight_bits(network, kind, tmp_path):
    with pytest.raises(UsageError, match=f"activations on grids go with --weight-type int8, got {kind}"):
        export(_quantize(network), tmp_path / "model.onnx", formats.get("onnx")(weight_type=kind), IMAGES)


def test_padding_with_another_value_is_no_move(network):
    class Padded(Residual):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (1, 1, 1, 1), value=5.0))

    found = points(trace(fold_batch_norms(Padded().eval(), {}, IMAGES)[0]), IMAGES[:2])
    assert (found["x"], found["pad"]) == ("x", "pad")


@pytest.mark.parametrize("gain", [1e-3, 1e-6, 1e-8, 1e-12, 0.0])
def test_channels_of_hardly_any_gain_keep_their_offset(network, gain, tmp_path):
    with torch.no_grad():
        network.norm2.weight[:3] = gain
        network.norm2.bias[:3] = torch.tensor([0.5, -0.5, 3.0])
    expected = quantize(network, [IMAGES], kbits=7, preset="fast").module(IMAGES)
    model = _quantize(network)
    torch.testing.assert_close(model.module(IMAGES), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    export(model, tmp_path / "model.onnx", formats.get("onnx")(), IMAGES)


@pytest.mark.parametrize(
    ("scale", "zero_point", "bits"), [(0.0, 0, 8), (-1.0, 0, 8), (float("nan"), 0, 8), (1.0, 256, 8), (1.0, 0, 70)]
)
def test_grids_that_are_none_are_refused(scale, zero_point, bits):
    with pytest.raises(UsageError, match="expected a grid of a positive scale"):
        Grid(scale, zero_point, bits)


def test_a_state_dict_of_a_folded_network_is_refused(network, tmp_path):
    model = _quantize(network)
    for form in (formats.get("torch")(), formats.get("safetensors")(dequantized=True)):
        with pytest.raises(UsageError, match="fits no network: use --format torch-export"):
            export(model, tmp_path / "model.pt", form, IMAGES)


def test_a_network_that_cannot_be_traced_is_refused(network):
    class Branching(Residual):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(NetworkError, match=r"activations cannot be quantized: torch\.fx cannot follow"):
        quantize(Branching().eval(), [IMAGES], preset="fast", abits=8)


def test_grids_of_another_network_are_refused(network):
    with pytest.raises(NetworkError, match="has no value norm3 to put on a grid"):
        with_grids(network, {"norm3": Grid(0.1, 0, 8)}, ())


def test_activations_that_are_always_zero_stay_zero(network):
    with torch.no_grad():
        network.norm.weight.zero_()
        network.norm.bias.fill_(-1)
    state = QuantizationState(copy.deepcopy(network), network)
    images = CalibrationImages(IMAGES, lambda batch: batch, None, 16, torch.device("cpu"))
    student = ActivationRanges()(state, images, torch.Generator()).student
    with torch.no_grad():
        torch.testing.assert_close(student(IMAGES), network(IMAGES), rtol=0.02, atol=0.02)
