"""`ldnq complexity`: of names, factories, weights, checkpoints and folders."""

import json

import pytest


def test_a_network_by_name_is_shown_layer_by_layer(ldnq):
    result = ldnq("complexity", "nin")
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines() if line.strip()]
    assert lines[2] == ["stage1.0.conv", "conv", "14,592", "14,745,600", "32", "32", "float"]
    assert lines[11] == ["all", "others", "2,836"]
    assert lines[12:] == [
        ["parameters", "969.82", "k"],
        ["multiply-accumulates", "222.49", "M"],
        ["of", "them", "float", "222.49", "M"],
        ["with", "bias,", "batch", "norm,", "activation,", "pooling", "225.16", "M"],
    ]


def test_arguments_classes_and_image_size_change_the_network(ldnq):
    def count(*words):
        return json.loads(ldnq("complexity", "resnet20", "--json", *words).out)

    plain = count()
    assert (plain["parameters"], plain["macs"]) == (269_722, 40_551_040)
    assert count("--model-arg", "width=32")["parameters"] == 1_073_962
    assert count("--num-classes", 100)["parameters"] == 269_722 + 90 * 65
    assert count("--image-size", 64)["macs"] == 4 * (40_551_040 - 640) + 640


def test_a_run_is_counted_with_its_bits(ldnq, tiny, trained, workdir):
    options = ["--kbits", 3, "--solver", "nearest", "--samples", 16, "--no-training", "--abits", 8, "--image-size", 32]
    assert ldnq("quantize", *tiny, *options, "--skip", "0", "--output", "run").code == 0
    own = ["--model", "tiny_network:build"]
    result = ldnq("complexity", "run", *own, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [(layer["name"], layer["operation"]) for layer in found["layers"] if layer["macs"]] == [
        ("0", "float"), ("3", "k-bit"), ("6", "k-bit"), ("11", "k-bit"),
    ]  # fmt: skip
    weights = ldnq("complexity", trained.weights, *own, "--image-size", 32, "--json")
    floats = json.loads(weights.out)
    assert floats["macs"] == floats["float_macs"] == found["macs"] == found["float_macs"] + found["kbit_macs"]
    refused = ldnq("complexity", trained.weights)
    assert (refused.code, "holds weights of tiny_network:build: give it by --model" in refused.err) == (2, True)
    shown = ldnq("complexity", "run/model.h5", *own).out
    assert " 1.58 " in shown
    assert "of them k-bit" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nni"], "unknown model 'nni': did you mean nin"),
        (["nin", "--model-arg", "kernel=3"], "cannot build nin with {'kernel': 3}"),
        (["nin", "--model-arg", "widths=[1,2]"], "expected 8 widths and 9 groups, got 2 and 9"),
        (["missing.h5"], "no checkpoint missing.h5"),
        (["."], "no checkpoint model.h5"),
        (["nin", "--image-size", "4"], "4 is not in the range"),
        (["torchvision.models:resnet18"], "expected --image-size for torchvision.models:resnet18"),
        (["nin", "--model", "tiny_network:build"], "expected a checkpoint with --model, got the network nin"),
    ],
)
def test_what_cannot_be_counted_is_said_in_a_line(ldnq, workdir, words, message):
    result = ldnq("complexity", *words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1
