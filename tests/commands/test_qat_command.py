"""`ldnq qat`: what it prints and writes, runs that are killed, and options that do not fit."""

import json
import os
import signal
import subprocess
import sys

import pytest

from ldnq.formats import h5


@pytest.fixture
def options(trained, workdir):
    """Of a run of a few seconds."""
    return [
        "--model", "tiny_network:build", "--dataset", "digits", "--image-size", "32", "--init", "scratch", "--epochs",
        "2", "--lr", "0.05", "--batch-size", "32", "--precision", "32", "--threads", "1",
    ]  # fmt: skip


def test_a_run_says_what_it_came_to_and_leaves_the_files_of_every_run(ldnq, options, workdir):
    result = ldnq("qat", *options, "--method", "dorefa", "--wbits", 2, "--abits", 4, "--test-every", 1, "-o", "run")
    assert result.code == 0, result.err
    assert "multiply-accumulates an image:" in result.err
    metrics = json.loads((workdir / "run/metrics.json").read_text())
    assert f"{metrics['quantized_top1']:.2f}%" in result.out
    assert (metrics["method"], metrics["wbits"], metrics["abits"], metrics["teacher_top1"]) == ("dorefa", 2, 4, None)
    assert {path.name for path in (workdir / "run").iterdir()} == {
        "config.json", "curves.svg", "details.h5", "layers.csv", "metrics.json", "model.h5", "report.html",
        "training.csv",
    }  # fmt: skip
    rows = (workdir / "run/training.csv").read_text().splitlines()
    assert len(rows) == 3
    assert float(rows[2].split(",")[-1]) == pytest.approx(metrics["quantized_top1"], abs=1)
    report = (workdir / "run/report.html").read_text()
    assert "weights of 2 bits, activations of 4 bits; 2 epochs on 1,347 labelled images" in report
    assert ldnq("inspect", "run/model.h5").code == 0
    assert ldnq("report", "run").code == 0
    again = ldnq("qat", "--resume", "run")
    assert (again.code, again.out) == (0, "the run in run is finished: nothing to do\n")


@pytest.mark.parametrize("method", ["dorefa", "xnor", "lsq", "any-precision"])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(ldnq, options, trained, workdir, method):
    options = [*options, "--method", method, *(["--bits", "2,8"] if method == "any-precision" else [])]
    assert ldnq("qat", *options, "--output", "whole").code == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "ldnq", "qat", *options, "--output", "killed"], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(trained.folder), *sys.path])},
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith("epochs 1 of 2"):
            process.kill()
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = ldnq("qat", "--resume", "killed")
    assert resumed.code == 0, resumed.err
    assert "going on after epoch 1 of 2" in resumed.err
    assert (workdir / "whole/training.csv").read_text() == (workdir / "killed/training.csv").read_text()
    first, second = (h5.read(workdir / run / "model.h5") for run in ("whole", "killed"))
    for name, weight in first.weights.items():
        assert weight.codes.equal(second.weights[name].codes)
        assert weight.scale.equal(second.weights[name].scale)
    assert all(tensor.equal(second.tensors[name]) for name, tensor in first.tensors.items())


def test_a_network_of_several_widths_is_measured_and_exported_at_each(ldnq, options, workdir):
    widths = ["--method", "any-precision", "--bits", "8,2", "--calibrate-bits", "4"]
    result = ldnq("qat", *options, *widths, "-o", "run")
    assert result.code == 0, result.err
    top1 = json.loads((workdir / "run/metrics.json").read_text())["top1_at"]
    assert list(top1) == ["2", "4", "8"]
    assert f"2: {top1['2']:.2f}%, 4: {top1['4']:.2f}%, 8: {top1['8']:.2f}%" in result.out
    assert "Widths" in (workdir / "run/report.html").read_text()
    own = ["--model", "tiny_network:build"]
    measured = ldnq("evaluate", "run/model.h5", *own, "--bits", "2,4", "--precision", "32", "--threads", 1, "--json")
    assert {width: found["top1"] for width, found in json.loads(measured.out)["at"].items()} == {
        width: top1[width] for width in ("2", "4")
    }
    assert "2, 4, 8 bits" in ldnq("inspect", "run/model.h5").out
    assert ldnq("export", "run", *own, "--bits", 2, "-o", "two.safetensors", "--format", "safetensors").code == 0
    assert f"{top1['2']:.2f}" in ldnq("inspect", "two.safetensors").out
    for command in (["evaluate", "run/model.h5"], ["export", "run", "-o", "three.onnx"]):
        for asked in (["--bits", "3"], ["--kbits", "3"], ["--bits", "0"]):
            refused = ldnq(*command, *own, *asked)
            assert refused.code == 2
            assert "expected bits of 2, 4, 8, which the network has, got" in refused.err
    for asked, said in (
        (["--bits", "2,2"], "each once"),
        (["--bits", "16"], "expected bits of 1 to 8 or 32"),
        (["--bits", ""], "got none"),
        (["--bits", "2", "--calibrate-bits", "4"], "expected bits to calibrate below the 2 that are trained, got 4"),
        (["--update", "quantized"], "expected --update float with any-precision"),
    ):
        refused = ldnq("qat", *options, "--method", "any-precision", *asked)
        assert refused.code == 2
        assert said in refused.err


def test_a_run_that_is_refused_leaves_the_one_before_as_it_was(ldnq, options, workdir):
    (workdir / "run").mkdir()
    (workdir / "run/config.json").write_text("{}")
    (workdir / "run/state.pt").write_bytes(b"of another run")
    result = ldnq("qat", *options, "-o", "run")
    assert result.code == 2
    assert "run/state.pt is damaged" in result.err
    assert (workdir / "run/config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "xnor", "--wbits", "4"], "wbits are no option of xnor, which has input_scale"),
        (["--method", "dorefa", "--kbits", "3"], "kbits are no option of dorefa, which has wbits, abits, gbits"),
        (["--teacher-model", "resnet20"], "expected --teacher FILE with --teacher-model"),
        (["--skip", "nothing"], "--skip nothing matches none of the layers"),
    ],
)
def test_options_that_do_not_fit_are_said_in_a_line(ldnq, options, words, said):
    result = ldnq("qat", *options, *words, "-o", "run")
    assert result.code == 2
    assert said in result.err.splitlines()[-1]
