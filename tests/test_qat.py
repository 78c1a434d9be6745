"""'ldnq qat' as its function: networks learn, and what they learned is in the files."""

import json

import numpy as np
import pytest
import torch

import ldnq
from ldnq import api, curves
from ldnq.appraisal import complexity_of
from ldnq.complexity import totals
from ldnq.errors import CheckpointError, LdnqError, UsageError

FACTORY = """
from torch import nn


def block(inputs, outputs, stride):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def build(width=12, num_classes=10):
    return nn.Sequential(
        block(3, width, 1), block(width, 2 * width, 2), block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, num_classes),
    )
"""
MODEL = "network_of_digits:build"
OPTIONS = {"dataset": "digits", "image_size": 16, "batch_size": 64, "precision": "32", "threads": 1}


@pytest.fixture(autouse=True)
def own_network(workdir, monkeypatch):
    (workdir / "network_of_digits.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(workdir)


def learned(workdir, **options):
    result = api.qat(MODEL, init="scratch", output="run", **OPTIONS | options)
    assert json.loads((workdir / "run/metrics.json").read_text())["quantized_top1"] == result.metrics["quantized_top1"]
    return result


def test_dorefa_of_four_bits_learns_the_digits(workdir):
    result = learned(workdir, method="dorefa", wbits=4, abits=4, epochs=16, lr=0.1, weight_decay=1e-4)
    assert result.metrics["quantized_top1"] > 95
    assert result.metrics["bits_per_weight"] == pytest.approx(4, abs=0.01)
    loaded = ldnq.load("run/model.h5", result.model.module)
    assert {name: len(weight.dequantize().unique()) for name, weight in loaded.weights.items()} == {
        "1.0.weight": 16, "2.0.weight": 16,
    }  # fmt: skip


def test_one_network_learns_the_digits_at_every_width(workdir):
    options = {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.0, "epochs": 16}
    result = learned(workdir, method="any-precision", bits=(2, 8), calibrate_bits=(4,), **options)
    assert result.model.precisions.widths == (2, 4, 8)
    accuracies = result.metrics["top1_at"]
    assert accuracies["8"] == result.metrics["quantized_top1"]
    assert min(accuracies.values()) > 90
    measured = ldnq.evaluate("run/model.h5", model=MODEL, bits=[2, 4], dataset="digits", threads=1, precision="32")
    assert {width: found["top1"] for width, found in measured["at"].items()} == {
        width: accuracies[width] for width in ("2", "4")
    }


def test_the_network_for_house_numbers_learns_the_digits_at_few_bits(workdir):
    options = {"optimizer": "adam", "lr": 0.005, "weight_decay": 0.0, "epochs": 8, "batch_size": 64, "threads": 1}
    result = api.qat("svhn-net", method="any-precision", bits=(2, 8), init="scratch", dataset="digits", **options)
    assert min(result.metrics["top1_at"].values()) > 95


def test_xnor_learns_the_digits_with_one_bit(workdir):
    options = {"optimizer": "adam", "lr": 0.05, "weight_decay": 0.0, "epochs": 16, "model_args": {"width": 24}}
    result = learned(workdir, method="xnor", **options)
    assert result.metrics["quantized_top1"] > 90
    # The file's own parts: codes of one bit, and a scale of 32 for each channel.
    count = sum(weight.codes.numel() for weight in result.model.weights.values())
    assert 8 * result.metrics["packed_parts"]["codes"] <= 1.03 * count
    found = totals(complexity_of("run", own=MODEL, model_args={"width": 24}))
    assert found["binary_macs"] > 0.8 * found["macs"]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "dorefa", "wbits": 1, "abits": 2, "gbits": 8},
        {"method": "xnor", "input_scale": True},
        {"method": "lsq", "wbits": 3, "abits": 3, "keep_first_last": False},
        {"method": "pot", "kbits": 5, "scale": "channel", "abits": 4},
    ],
    ids=lambda options: options["method"],
)
def test_what_is_saved_computes_what_was_measured(workdir, options):
    result = learned(workdir, epochs=1, lr=0.05, **options)
    found = ldnq.evaluate("run/model.h5", model=MODEL, dataset="digits", threads=1)
    assert found["top1"] == result.metrics["quantized_top1"]
    x = torch.randn(3, 3, 16, 16)
    import network_of_digits

    loaded = ldnq.load("run/model.h5", network_of_digits.build())
    np.testing.assert_array_equal(loaded.module(x).detach(), result.model.module(x).detach())
    assert len(curves.read(workdir / "run/training.csv")) == 1
    assert options["method"] in (workdir / "run/report.html").read_text()
    assert not (workdir / "run/state.pt").exists()


@pytest.mark.parametrize("method", ["dorefa", "xnor"])
def test_exported_networks_run_in_onnxruntime(workdir, method):
    learned(workdir, method=method, epochs=1, lr=0.05)
    exported = api.export("run", "model.onnx", model=MODEL, dataset="digits")
    assert (exported.checked, exported.agreed) == (128, 128)
    found = ldnq.formats.read("model.onnx")
    assert found.inputs == ldnq.formats.read("run/model.h5").inputs


def test_a_run_goes_on_from_a_quantized_network(workdir):
    data = {"dataset": "digits", "image_size": 16, "threads": 1}
    weights, card = ldnq.train(MODEL, epochs=8, lr=0.1, batch_size=64, output="float", precision="32", **data)
    ldnq.quantize(MODEL, kbits=3, output="quantized", preset="fast", checkpoint=str(weights), samples=100, **data)
    result = api.qat(
        MODEL, method="pot", kbits=3, init="quantized/model.h5", output="trained", epochs=3, lr=0.02,
        teacher=weights, **OPTIONS,
    )  # fmt: skip
    before = json.loads((workdir / "quantized/metrics.json").read_text())["quantized_top1"]
    assert result.metrics["teacher_top1"] == before
    assert result.metrics["quantized_top1"] > card["top1"] - 3
    assert complexity_of("float", own=MODEL) == complexity_of(str(weights), own=MODEL)
    from_float = api.qat(MODEL, init=weights, output="other", epochs=1, lr=0.01, **OPTIONS)
    assert from_float.metrics["teacher_top1"] == card["top1"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "dorefas"}, "expected a method of dorefa, xnor, lsq, pot, any-precision, got 'dorefas'"),
        ({"method": "xnor", "wbits": 2}, "wbits are no option of xnor"),
        ({"method": "dorefa", "wbits": 5}, "expected wbits of 1, 2, 3, 4, 8, 16, 32, got 5"),
        ({"method": "lsq", "wbits": 1}, "expected wbits of 2, 3, 4, 8 or 32 with lsq"),
        ({"method": "pot", "kbits": 4}, "expected kbits of 3, 5, 7, 9, 11, got 4"),
        ({"method": "pot", "scale": "row"}, "expected a scale of layer or channel"),
        ({"update": "both"}, "expected an update of the float or quantized weights"),
        ({"init": "nowhere.pt"}, "nowhere.pt"),
        ({"epochs": 0}, "at least 1 epoch"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(options, said):
    with pytest.raises(LdnqError, match=said) as found:
        api.qat(MODEL, **{"init": "scratch", "output": "run"} | OPTIONS | options)
    assert "\n" not in str(found.value)


def test_weights_of_another_method_are_no_start(workdir):
    learned(workdir, epochs=1, lr=0.05)
    with pytest.raises(UsageError, match="found trained ones"):
        api.qat(MODEL, init="run/model.h5", output="again", epochs=1, **OPTIONS)


def test_pretrained_weights_are_asked_for_by_name():
    with pytest.raises(CheckpointError, match="no weights for nin on digits"):
        api.qat("nin", init="pretrained", output="run", epochs=1, **OPTIONS | {"image_size": 32})


def test_weights_that_were_named_are_found_or_said(workdir):
    for options in ({"checkpoint": "typo.pt"}, {"checkpoint": "typo.pt", "init": "scratch"}):
        with pytest.raises(LdnqError, match=r"typo.pt|expected --checkpoint or --init"):
            api.qat(MODEL, output="run", epochs=1, **OPTIONS | options)


def test_a_file_brings_its_preprocessing(workdir):
    data = {"dataset": "digits", "image_size": 16, "threads": 1, "mean": (0.3, 0.4, 0.5), "std": (0.2, 0.3, 0.4)}
    _, card = ldnq.train(MODEL, epochs=4, lr=0.1, batch_size=64, output="float", precision="32", **data)
    result = api.qat(MODEL, init="float", output="run", epochs=1, lr=0.01, **OPTIONS)
    assert result.metrics["teacher_top1"] == card["top1"]
    assert result.model.preprocessing.mean == (0.3, 0.4, 0.5)


def test_nothing_is_written_where_files_are_not_there(workdir):
    for options in ({"init": "nope.pt"}, {"teacher": "nope.pt"}, {"distillation": 0.3}):
        with pytest.raises(LdnqError, match=r"nope.pt: the file does not exist|--teacher"):
            api.qat(MODEL, output="run", epochs=1, **OPTIONS | options)
        assert not (workdir / "run").exists()


def test_magnitudes_of_inputs_are_floats_in_the_complexity(workdir):
    learned(workdir, method="xnor", input_scale=True, epochs=1, lr=0.05)
    macs = {layer.name: (layer.macs, layer.operation) for layer in complexity_of("run", own=MODEL)}
    assert macs["1.0"] == (12 * 24 * 9 * 64, "binary")
    assert macs["1.0.inputs.magnitude"] == (9 * 64, "float")


def test_images_held_out_are_not_counted_as_trained_on(workdir):
    result = learned(workdir, epochs=1, hold_out=0.2)
    assert result.metrics["train_images"] == 1347 - round(0.2 * 1347)


def test_runs_from_random_weights_are_compared(workdir):
    for name in ("one", "two"):
        api.qat(MODEL, init="scratch", output=name, epochs=1, **OPTIONS)
    assert "<svg" in api.report("one", "two", output="both.html").read_text()
