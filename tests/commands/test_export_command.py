import json

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from ldnq import load
from ldnq.datasets.digits import load_digits
from ldnq.network import build


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """The folder of a finished run on the digits."""
    from tests.commands.conftest import call

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(trained.folder)
        result = call(
            "quantize", "--model", "tiny_network:build", "--checkpoint", trained.weights, "--dataset", "digits",
            "--preset", "fast", "--samples", 50, "--skip", "3", "--output", "run",
        )  # fmt: skip
        assert result.code == 0, result.err
    return folder / "run"


@pytest.fixture
def own(tiny):
    """How to build the network of that run."""
    return tiny[:2]


def _top1(outputs, labels):
    return 100 * float((np.asarray(outputs).argmax(1) == np.asarray(labels)).mean())


def test_a_run_becomes_a_file_that_onnxruntime_runs_as_well(ldnq, finished, own, workdir):
    result = ldnq("export", finished, "--format", "onnx", "--output", "model.onnx", *own)
    assert result.code == 0, result.err
    assert "weights bit for bit, classes of 50 of 50 images" in result.out
    assert "--skip 3" in result.out
    images = load_digits(workdir, "test")
    preprocessing = load(finished / "model.h5", build(own[1], {})).preprocessing
    batch = torch.stack([preprocessing.to_uint8(images.picture(index)) for index in range(len(images))])
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"input": preprocessing.normalize(batch).numpy()})[0]
    metrics = json.loads((finished / "metrics.json").read_text())
    assert _top1(outputs, images.labels) == pytest.approx(metrics["quantized_top1"], abs=0.3)
    measured = ldnq("evaluate", "model.onnx", "--json", *own)
    assert json.loads(measured.out)["top1"] == metrics["quantized_top1"]


@pytest.mark.parametrize(
    ("name", "suffix"), [("onnx", "onnx"), ("safetensors", "safetensors"), ("torch", "pt"), ("torch-export", "pt2")]
)
def test_the_file_lies_beside_the_checkpoint_if_nothing_else_is_said(ldnq, finished, own, name, suffix, workdir):
    result = ldnq("export", finished / "model.h5", "--format", name, *own)
    assert result.code == 0, result.err
    path = finished / f"model.{suffix}"
    size = path.stat().st_size
    path.unlink()
    assert f"{size:,} bytes" in " ".join(result.out.split())


def test_options_of_the_formats(ldnq, finished, own, workdir):
    for options in (["--weight-type", "int2"], ["--weight-type", "float"], ["--fold-batchnorm"], ["--no-verify"]):
        result = ldnq("export", finished, "-o", "model.onnx", *options, *own)
        assert result.code == 0, result.err
        assert ("checked                  no" in result.out) == (options == ["--no-verify"])
    result = ldnq("export", finished, "--format", "safetensors", "--dequantized", "-o", "plain.safetensors", *own)
    assert result.code == 0, result.err
    module = build(own[1], {})
    module.load_state_dict(load_file("plain.safetensors"))


def test_inspect_reads_what_was_exported(ldnq, finished, own, workdir):
    for name, path in (("onnx", "model.onnx"), ("safetensors", "model.safetensors")):
        ldnq("export", finished, "--format", name, "-o", path, *own)
        found, expected = (json.loads(ldnq("inspect", p, "--json").out) for p in (path, finished / "model.h5"))
        assert found["layers"] == expected["layers"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no checkpoint nowhere"),
        (["RUN", "--format", "tflite"], "unknown format 'tflite': expected one of"),
        (["RUN", "--weight-type", "int3"], "expected a weight type of int8, int4, int2, float, got 'int3'"),
        (["RUN", "--format", "torch", "--weight-type", "int4"], "--weight-type is not for --format torch"),
        (["RUN", "--dequantized"], "--dequantized is not for --format onnx"),
        (["RUN", "--data-root", "nowhere", "--dataset", "cifar10"], "no folder nowhere"),
        (["RUN", "--dataset", "cifar10"], "no folder data/cifar10"),
        (["RUN", "-o", "."], "expected a file for --output, got ."),
        (["RUN", "-o", "/"], "expected a file for --output, got /"),
        (["RUN", "-o", "/dev/null"], "expected a file for --output, got /dev/null"),
    ],
)
def test_bad_input_is_one_line(ldnq, finished, own, words, message, workdir):
    result = ldnq("export", *[finished if word == "RUN" else word for word in words], *own)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err


def test_activations_of_eight_bits_become_integer_layers(ldnq, tiny, own, workdir):
    result = ldnq("quantize", *tiny, "--preset", "fast", "--samples", 50, "--abits", 8, "--output", "run")
    assert result.code == 0, result.err
    metrics = json.loads((workdir / "run" / "metrics.json").read_text())
    assert metrics["abits"] == 8
    result = ldnq("export", "run", *own)
    assert result.code == 0, result.err
    assert "integer layers           4 of 4" in result.out
    measured = json.loads(ldnq("evaluate", "run/model.h5", "--json", *own).out)
    assert measured["top1"] == metrics["quantized_top1"]


def test_a_checkpoint_of_the_python_interface_needs_the_size_of_its_images(ldnq, finished, own, workdir):
    from ldnq.formats import h5

    model = load(finished / "model.h5", build(own[1], {}))
    model.preprocessing = None
    h5.save(model, workdir / "model.h5")
    refused = ldnq("export", "model.h5", *own)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "give --image-size" in refused.err
    assert ldnq("export", "model.h5", "--image-size", 32, *own).code == 0


def test_a_file_is_not_written_over_the_one_it_is_read_from(ldnq, finished, own, workdir):
    ldnq("export", finished, "--format", "safetensors", "-o", "model.safetensors", *own)
    result = ldnq("export", "model.safetensors", "--format", "safetensors", *own)
    assert result.code == 2
    assert "expected --output, another file than model.safetensors" in result.err


def test_without_its_images_the_file_is_checked_on_noise(ldnq, finished, own, workdir):
    from ldnq.formats import h5

    model = load(finished / "model.h5", build(own[1], {}))
    model.provenance["dataset"] = "cifar10"
    h5.save(model, workdir / "model.h5")
    result = ldnq("export", "model.h5", *own)
    assert result.code == 0
    assert "checked on noise: no folder data/cifar10" in result.err
