"""The package's functions have the names and the options of the commands."""

import json

import pytest
import torch

import ldnq
from ldnq import api
from ldnq.errors import UsageError


def test_a_network_by_name_is_quantized_as_the_command_does(workdir):
    options = {"dataset": "digits", "preset": "paper", "solver": "nearest", "samples": 20, "training": False}
    model = ldnq.quantize("resnet20", kbits=9, output="run", **options)
    metrics = json.loads((workdir / "run/metrics.json").read_text())
    assert (metrics["kbits"], metrics["calibration_samples"]) == (9, 20)
    found = ldnq.evaluate("run/model.h5")
    assert found["top1"] == metrics["quantized_top1"]
    saved = ldnq.load("run/model.h5").module.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.module.state_dict().items())


FACTORY = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 10))
"""


def test_every_command_has_its_function(workdir, monkeypatch):
    (workdir / "own_network.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(workdir)
    model, data = "own_network:build", {"dataset": "digits", "image_size": 32}
    weights, card = ldnq.train(model, epochs=6, lr=0.05, batch_size=64, output="trained", **data)
    assert card["top1"] > 80
    assert len(ldnq.sample("digits", samples=30).indices) == 30
    options = {"checkpoint": str(weights), "preset": "fast", "samples": 30, **data}
    found = api.sensitivity(model, [3, 5], **options)
    assert [(trial.layer.name, trial.num_levels) for trial in found] == [("0", 3), ("0", 5), ("3", 3), ("3", 5)]
    summaries = api.sweep([model], [3, 9], output="sweep", **options)
    assert [summary.kbits for summary in summaries] == [3, 9]
    assert "<svg" in (workdir / "sweep/comparison.html").read_text()
    run = next((workdir / "sweep").glob("*-k9-s0"))
    assert api.report(run, output="again.html").read_text().startswith("<!doctype html>")
    exported = api.export(run, "state.pt", "torch", **data | {"model": model})
    assert [layer.name for layer in api.complexity(str(run), own=model)] == ["0", "1", "3"]
    assert (exported.agreed, exported.bytes) == (exported.checked, (workdir / "state.pt").stat().st_size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ldnq.quantize("resnet20", kbit=3), "unknown option 'kbit': did you mean kbits"),
        (lambda: ldnq.quantize("resnet20", [torch.rand(2, 3, 8, 8)]), "expected a dataset with resnet20, got batches"),
        (lambda: ldnq.quantize(torch.nn.Flatten()), "expected batches of inputs with a module"),
        (lambda: ldnq.evaluate(dataset="digits"), "expected a checkpoint or a model, got neither"),
        (lambda: ldnq.evaluate(model="resnet21"), "unknown model 'resnet21'"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_a_name_that_the_package_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = ldnq.quantise
