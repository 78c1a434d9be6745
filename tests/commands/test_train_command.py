"""`ldnq train --resume`: runs that are killed, and what is no run to go on with."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from filelock import FileLock

from ldnq import checkpoints

NAME = "tiny_network.build-digits.safetensors"


@pytest.fixture
def options(tiny):
    """Of a run of a few seconds; tiny's own are the network and its weights."""
    return [
        *map(str, [*tiny[:2], "--dataset", "digits", "--image-size", 32, "--epochs", 2, "--batch-size", 32]),
        "--model-arg", "width=10", "--std", "0.3,0.3,0.3", "--precision", "32", "--threads", "1",
    ]  # fmt: skip


def _killed(options, trained, run, after):
    """Train into `run` in a process that is killed once it says a line that begins with `after`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ldnq", "train", *options, "--output", run], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(trained.folder), *sys.path])},
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith(after):
            process.kill()
            break
    process.communicate()
    return process.returncode


def test_training_that_is_killed_goes_on_to_the_same_weights(ldnq, options, trained, workdir):
    assert ldnq("train", *options, "--output", "whole").code == 0
    whole = checkpoints.read(workdir / "whole" / NAME)
    for run, after in (("unbegun", "tiny_network:build on digits"), ("begun", "epochs 1 of 2")):
        assert _killed(options, trained, run, after) == -signal.SIGKILL
        left = {path.name for path in (workdir / run).iterdir()} - {".lock"}
        assert left == {"config.json"} | ({"state.pt", "training.csv"} if run == "begun" else set())
        resumed = ldnq("train", "--resume", run)
        assert resumed.code == 0, resumed.err
        assert ("going on after epoch 1 of 2" in resumed.err) == (run == "begun")
        tensors, card = checkpoints.read(workdir / run / NAME)
        assert tensors.keys() == whole[0].keys()
        assert all(torch.equal(tensor, whole[0][name]) for name, tensor in tensors.items())
        assert card == whole[1]
    again = ldnq("train", "--resume", "begun")
    assert (again.code, again.out) == (0, "the run in begun is finished: nothing to do\n")


def test_one_training_at_a_time_writes_to_a_folder(ldnq, options, workdir):
    (workdir / "run").mkdir()
    with FileLock(workdir / "run/.lock"):
        result = ldnq("train", *options, "--output", "run")
    assert (result.code, result.err.splitlines()[-1]) == (
        2, "error: another run is writing to run: wait for it, or use another --output",
    )  # fmt: skip


def test_weights_that_are_there_are_not_overwritten(ldnq, options, workdir, trained):
    (workdir / "run").mkdir()
    shutil.copy(trained.weights, workdir / "run" / NAME)
    result = ldnq("train", *options, "--output", "run")
    assert (result.code, result.err) == (2, f"error: run/{NAME} is there already: use another --output\n")


def test_a_refused_command_leaves_the_options_of_the_run(ldnq, options, workdir):
    assert ldnq("train", *options, "--output", "run").code == 0
    before = (workdir / "run/config.json").read_text()
    (workdir / "run" / NAME).unlink()
    assert ldnq("train", *options, "--lr", "0.01", "--output", "run").code == 2
    assert (workdir / "run/config.json").read_text() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume", "nowhere"], "cannot read configuration nowhere/config.json: No such file or directory"),
        (
            ["--resume", "one", "--output", "two"],
            "--resume goes on in one: leave out --output (see 'main train --help')",
        ),
        (["--resume", "one"], "expected a run of 'ldnq train' in one, found another: use 'ldnq quantize --resume'"),
    ],
    ids=["no folder", "two folders", "a quantized network"],
)
def test_what_cannot_be_resumed_is_said(ldnq, workdir, words, said):
    (workdir / "one").mkdir()
    (workdir / "one/config.json").write_text(json.dumps({"network": {"model": "resnet20"}}))
    result = ldnq("train", *words)
    assert (result.code, result.err) == (2, f"error: {said}\n")
