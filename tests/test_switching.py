"""Networks of several widths: what is trained is what is stored, and switching leaves nothing behind."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ldnq import formats
from ldnq.calibration import CalibrationImages
from ldnq.errors import CheckpointError, NetworkError, UsageError
from ldnq.formats import h5
from ldnq.network import build
from ldnq.preparation import copied, start
from ldnq.quantized import QuantizedModel
from ldnq.quantizers.any_precision import AnyPrecision
from ldnq.stages.training import QuantizedTraining
from ldnq.stages.widths import WidthCalibration
from ldnq.switching import SwitchedNorm, set_width, with_norms

INTEGERS, FLOATS = (1, 2, 8), (2, 4, 32)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", groups=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 36, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip


def images():
    found = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return CalibrationImages(found, lambda batch: batch, None, 32, torch.device("cpu"))


def trained(widths, more=()):
    """A model of these widths after a few steps, and what the network gave at each while its weights were latent."""
    given = {}

    def fit(pupil):
        optimizer = torch.optim.SGD(pupil.parameters, 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            for width in reversed(pupil.widths):
                set_width(pupil.module, width)
                outputs = pupil.module.train()(images().images)
                nn.functional.cross_entropy(outputs, torch.arange(32) % 4).backward()
            optimizer.step()
        for width in widths:
            set_width(pupil.module, width)
            given[width] = pupil.module.eval()(images().images).detach()

    state = QuantizedTraining(AnyPrecision(widths), fit)(start(network()), images(), torch.Generator())
    if more:
        state = WidthCalibration(more)(state, images(), torch.Generator())
    model = QuantizedModel(state.student, state.weights, inputs=state.inputs, precisions=state.precisions)
    return model, given


@pytest.mark.parametrize("widths", [INTEGERS, FLOATS, (4,), (32,)], ids=str)
@pytest.mark.parametrize("suffix", ["h5", "safetensors"])
def test_every_width_of_a_loaded_checkpoint_is_the_one_trained_bit_for_bit(widths, suffix, tmp_path):
    model, given = trained(widths)
    path = tmp_path / f"model.{suffix}"
    h5.save(model, path) if suffix == "h5" else formats.safetensors.save(model, path)
    loaded = formats.load(path, network())
    for width in (*widths, *reversed(widths)):
        loaded.set_bits(width)
        assert torch.equal(loaded.module(images().images), given[width])


@pytest.mark.parametrize("widths", [INTEGERS, FLOATS], ids=str)
def test_switching_back_and_forth_leaves_no_trace(widths):
    model, given = trained(widths)
    before = copy.deepcopy(model.module.state_dict())
    for width in (*widths, widths[0], widths[-1]):
        model.set_bits(width)
        assert torch.equal(model.module(images().images), given[width])
    after = model.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("widths", [INTEGERS, FLOATS], ids=str)
def test_a_width_alone_is_an_ordinary_model(widths, tmp_path):
    model, given = trained(widths)
    for width in widths:
        alone = model.at(width)
        assert not any(isinstance(part, SwitchedNorm) for part in alone.module.modules())
        assert alone.module.state_dict().keys() == network().state_dict().keys()
        assert torch.equal(alone.module(images().images), given[width])
        for name, weight in alone.weights.items():
            assert weight.codebook.num_levels == 2**width
            assert torch.equal(alone.module.state_dict()[name], weight.dequantize())
        assert bool(alone.weights) == (width < 32)
        h5.save(alone, tmp_path / "alone.h5")
        assert torch.equal(formats.load(tmp_path / "alone.h5", network()).module(images().images), given[width])
    model.set_bits(widths[0])
    assert torch.equal(model.module(images().images), given[widths[0]])


def test_only_the_weights_of_the_widest_are_stored(tmp_path):
    sizes = h5.save(trained((1, 2, 4, 8))[0], tmp_path / "several.h5")
    one = h5.save(trained((8,))[0], tmp_path / "one.h5")
    # Three batch norms of 8 and 12 channels have four vectors and a counter each, two layers a scale each.
    assert sizes["codes"] == one["codes"] == 8 * 4 * 9 + 12 * 288
    assert sizes["tensors"] - one["tensors"] == 3 * (4 * 4 * (8 + 8 + 12) + 3 * 8 + 2 * 4)
    # With floats among the widths there are no codes.
    assert h5.save(trained((1, 32))[0], tmp_path / "floats.h5")["codes"] == 0


@pytest.mark.parametrize("widths", [(1, 4, 8), (2, 32)], ids=str)
def test_a_width_that_was_not_trained_is_calibrated_alone(widths, tmp_path):
    plain, given = trained(widths)
    model, _ = trained(widths, (3,))
    h5.save(model, tmp_path / "model.h5")
    loaded = formats.load(tmp_path / "model.h5", network())
    assert loaded.precisions.widths == tuple(sorted((*widths, 3)))
    for width in widths:
        loaded.set_bits(width)
        assert torch.equal(loaded.module(images().images), given[width])
    low, high = plain.module[4].of(widths[0]), plain.module[4].of(widths[1])
    norm, share = loaded.module[4].of(3), (3 - widths[0]) / (widths[1] - widths[0])
    np.testing.assert_allclose(
        *(part.detach() for part in (norm.weight, low.weight.lerp(high.weight, share))), rtol=1e-6
    )
    # Behind a layer that stays float the statistics can be seen directly.
    seen = loaded.module[0](images().images).detach()
    np.testing.assert_allclose(loaded.module[1].of(3).running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loaded.module[1].of(3).running_var, seen.var((0, 2, 3)), rtol=1e-4)
    assert not torch.equal(norm.running_var, low.running_var)
    assert not torch.equal(norm.running_var, high.running_var)
    assert loaded.at(3).weights["3.weight"].codebook.num_levels == 8


def test_what_cannot_be_switched_is_said():
    model, _ = trained((2, 8))
    with pytest.raises(UsageError, match="expected bits of 2, 8, which the network has, got bits 4"):
        model.set_bits(4)
    with pytest.raises(UsageError, match="found one of one"):
        model.at(2).set_bits(2)


def test_a_file_without_the_scales_of_a_width_is_refused(tmp_path):
    model, _ = trained((2, 8))
    h5.save(model, tmp_path / "model.h5")
    contents = h5.read(tmp_path / "model.h5")
    del contents.tensors["3.scales"]
    with pytest.raises(CheckpointError, match="scales of some widths are missing"):
        contents.assemble("model.h5", network())


def test_every_width_has_its_own_statistics():
    module = with_norms(network().train(), (1, 8))
    set_width(module, 1)
    module(5 + torch.randn(16, 3, 8, 8))
    assert module[1].of(1).num_batches_tracked == 1
    assert module[1].of(8).num_batches_tracked == 0


def test_networks_of_torchvision_have_widths_by_replacement_of_their_parts(tmp_path):
    found = CalibrationImages(torch.rand(4, 3, 32, 32), lambda batch: batch, None, 4, torch.device("cpu"))
    stage = QuantizedTraining(AnyPrecision((1, 8)), lambda pupil: None)
    state = stage(start(build("resnet18", {"num_classes": 3})), found, torch.Generator())
    student = copied(state.student, torch.contiguous_format)
    model = QuantizedModel(
        student, state.weights, "resnet18", {"num_classes": 3}, inputs=state.inputs, precisions=state.precisions
    )
    h5.save(model, tmp_path / "model.h5")
    loaded = formats.load(tmp_path / "model.h5")
    for bits in (1, 8):
        loaded.set_bits(bits)
        model.set_bits(bits)
        assert torch.equal(loaded.module(found.images), model.module(found.images))
    assert len(model.weights) == 19


class Shared(nn.Module):
    """A batch norm under two names, and a buffer that is called as those of widths are."""

    def __init__(self):
        super().__init__()
        norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 8, 3), norm, nn.ReLU())
        self.again = norm
        self.head = nn.Linear(8, 4)
        self.register_buffer("biases", torch.arange(3.0))

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)) + self.again.weight)


def test_a_batch_norm_of_two_names_is_one_at_every_width(tmp_path):
    stage = QuantizedTraining(AnyPrecision((2, 8)), lambda pupil: None)
    state = stage(start(Shared()), images(), torch.Generator())
    # In the layout that it is loaded in.
    state.student = copied(state.student, torch.contiguous_format)
    norm = state.student.again
    assert isinstance(norm, SwitchedNorm)
    assert state.student.body[1] is state.student.body[4] is norm
    with torch.no_grad():
        norm.of(2).weight.add_(1)
    model = QuantizedModel(state.student, state.weights, inputs=state.inputs, precisions=state.precisions)
    h5.save(model, tmp_path / "model.h5")
    loaded = formats.load(tmp_path / "model.h5", Shared())
    for bits in (2, 8):
        model.set_bits(bits)
        loaded.set_bits(bits)
        assert torch.equal(loaded.module(images().images), model.module(images().images))
        assert torch.equal(loaded.at(bits).module(images().images), model.module(images().images))


def test_layers_that_share_a_weight_are_refused():
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(192, 4))
    module[2].weight = module[1].weight
    with pytest.raises(NetworkError, match=r"1\.weight and 2\.weight are one parameter"):
        QuantizedTraining(AnyPrecision((2, 8)), lambda pupil: None)(start(module), images(), torch.Generator())


def test_weights_follow_what_is_loaded_and_where_they_are_used():
    model, other = trained((2, 8))[0], trained((2, 8))[0]
    with torch.no_grad():
        for name, weight in other.module.state_dict().items():
            weight.mul_(2 if name in ("3.weight", "3.scales") else 1)
    model.set_bits(2)
    with torch.inference_mode():
        model.module(images().images)
    model.module.load_state_dict(other.module.state_dict())
    other.set_bits(2)
    x = images().images.requires_grad_()
    model.module(x).sum().backward()
    assert torch.equal(model.module(x), other.module(x))


def test_one_width_does_not_claim_what_another_has(tmp_path):
    model, _ = trained((2, 8))
    model.provenance = {"quantized_top1": 90.0, "top1_at": {"2": 80.0, "8": 90.0}, "bits": [2, 8], "model": "mine"}
    assert model.at(2).provenance == {"quantized_top1": 80.0, "model": "mine", "left_float": {}}
    assert model.float_bytes == model.at(8).float_bytes == model.at(2).float_bytes
    for given in ({}, {"bits": 2, "kbits": 3}):
        with pytest.raises(UsageError, match="expected bits or kbits, got"):
            model.at(**given)
    for bits in (2.0, True):
        with pytest.raises(UsageError, match="expected bits of 2, 8"):
            model.set_bits(bits)
