"""What the stage that trains leaves: a network whose weights are codes, whose layers round their inputs."""

import numpy as np
import pytest
import torch
from torch import nn

from ldnq.calibration import CalibrationImages
from ldnq.errors import NetworkError, UsageError
from ldnq.preparation import start
from ldnq.quantizers.dorefa import DoReFa, TanhWeight
from ldnq.quantizers.inputs import find_inputs
from ldnq.quantizers.lsq import Lsq
from ldnq.quantizers.power_of_two import PowerOfTwo
from ldnq.quantizers.xnor import XnorNet
from ldnq.stages.training import QuantizedTraining


def network(norm_first=False):
    inner = nn.Conv2d(8, 8, 3, padding=1)
    middle = [nn.BatchNorm2d(8), inner] if norm_first else [inner, nn.BatchNorm2d(8)]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    )


def images():
    found = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return CalibrationImages(found, lambda batch: batch, None, 32, torch.device("cpu"))


def steps(count, lr=0.1):
    """A training of so many steps towards one class."""

    def fit(pupil):
        optimizer = torch.optim.SGD(pupil.parameters, lr)
        pupil.module.train()
        for _ in range(count):
            loss = nn.functional.cross_entropy(pupil.module(images().images), torch.zeros(32, dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            pupil.before_step()
            optimizer.step()
            pupil.after_step()

    return fit


def trained(method, module=None, count=3, **options):
    stage = QuantizedTraining(method, steps(count), **options)
    return stage(start(module or network()), images(), torch.Generator())


@pytest.mark.parametrize(
    "method",
    [
        DoReFa(1, 1),
        DoReFa(4, 4, 4),
        DoReFa(8, 8),
        XnorNet(),
        XnorNet(True),
        Lsq(2, 3),
        PowerOfTwo(5),
        PowerOfTwo(3, "channel", 4),
    ],
    ids=str,
)
def test_weights_are_codes_when_the_training_is_over(method):
    state = trained(method)
    (name,) = state.weights
    weight = state.student.get_parameter(name)
    np.testing.assert_array_equal(weight.detach(), state.weights[name].dequantize())
    assert len(weight.unique()) <= state.weights[name].codebook.num_levels * state.weights[name].scale.numel()
    assert [result.layer.name for result in state.results] == ["3"]
    assert [layer.name for layer in state.skipped] == ["0", "7"]
    assert not any("parametrizations" in key for key in state.student.state_dict())


def test_first_and_last_layer_are_quantized_where_that_is_wanted():
    state = trained(DoReFa(), keep_first_last=False)
    assert list(state.weights) == ["0.weight", "3.weight", "7.weight"]
    assert set(state.inputs) == {"0", "3", "7"}


def test_layers_that_are_skipped_stay_float():
    state = trained(DoReFa(), keep_first_last=False, skip=("3",))
    assert list(state.weights) == ["0.weight", "7.weight"]
    with pytest.raises(UsageError, match="--skip nothing matches none"):
        trained(DoReFa(), skip=("nothing",))
    with pytest.raises(NetworkError, match="at least one Conv2d or Linear layer"):
        trained(DoReFa(), nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))


def test_weights_of_many_bits_stay_floats_and_are_said():
    for method in (DoReFa(16, 8), DoReFa(32, 8)):
        state = trained(method)
        assert not state.weights
        assert {layer.name: layer.reason for layer in state.skipped}["3"].startswith("weights of more than 8 bits")
        assert set(find_inputs(state.student)) == {"3"}


def test_signs_come_behind_the_batch_norm_there_is_or_one_of_their_own():
    assert trained(XnorNet(), network(norm_first=True)).inputs["4"]["norm"] is False
    state = trained(XnorNet(), network())
    assert state.inputs["3"]["norm"] is True
    norm = state.student.get_submodule("3.inputs.norm")
    assert int(norm.num_batches_tracked) == 3
    assert norm.running_mean.abs().max() > 0


def test_latent_values_of_xnor_are_centred_after_every_step():
    module = network()
    seen = []

    def fit(pupil):
        steps(1)(pupil)
        seen.append(pupil.module[3].parametrizations.weight.original.detach().clone())

    QuantizedTraining(XnorNet(), fit)(start(module), images(), torch.Generator())
    np.testing.assert_allclose(seen[0].mean(1), 0, atol=1e-6)


@pytest.mark.parametrize("stepped", [False, True])
def test_the_optimizer_steps_the_weights_that_it_is_told_to(stepped):
    before, after = [], []

    def fit(pupil):
        latent = pupil.module[3].parametrizations.weight.original
        before.append(latent.detach().clone())
        pupil.module.train()
        pupil.module(images().images).square().sum().backward()
        pupil.before_step()
        after.append(latent.detach().clone())

    QuantizedTraining(DoReFa(4, 32), fit, step_quantized=stepped)(start(network()), images(), torch.Generator())
    if not stepped:
        np.testing.assert_array_equal(after[0], before[0])
        return
    # The latent values now are where their level is, and stay on it however often that is done.
    assert len(after[0].unique()) <= 16
    quantizer = TanhWeight(4)
    np.testing.assert_allclose(quantizer(after[0]), quantizer(before[0]), atol=1e-6)
    np.testing.assert_allclose(quantizer(quantizer.settled(after[0])), quantizer(before[0]), atol=1e-6)


def test_learned_steps_do_not_decay_and_are_learned():
    found = {}

    def fit(pupil):
        found["groups"] = [(len(group["params"]), group.get("weight_decay")) for group in pupil.parameters]
        found["steps"] = [step.detach().clone() for step in pupil.parameters[1]["params"]]
        steps(2)(pupil)
        found["learned"] = [step.detach().clone() for step in pupil.parameters[1]["params"]]

    QuantizedTraining(Lsq(3, 3), fit)(start(network()), images(), torch.Generator())
    assert found["groups"][1] == (2, 0.0)
    assert all(step > 0 and step != learned for step, learned in zip(found["steps"], found["learned"]))


def test_the_teacher_keeps_what_the_weights_were_rounded_from():
    state = trained(DoReFa(2, 32))
    floats = state.teacher.get_parameter("3.weight")
    assert float(floats.abs().max()) == pytest.approx(1)
    half = 1 / 3
    assert float((floats - state.student.get_parameter("3.weight")).abs().max()) <= half + 1e-6


def test_layers_that_the_paper_keeps_float_stay_so_where_there_are_any():
    both = trained(DoReFa(), keep_first_last=False, customary=("0", "nowhere.*"))
    assert list(both.weights) == ["3.weight", "7.weight"]
    assert [(layer.name, layer.reason) for layer in both.skipped] == [("0", "float also in the paper")]
