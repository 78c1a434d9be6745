"""`ldnq train --resume`: runs that are killed, and what is no run to go on with."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from filelock import FileLock
from scipy.io import savemat

from ldnq import checkpoints, curves
from ldnq.datasets import datasets

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


@pytest.mark.parametrize(
    "words",
    [
        "--optimizer adam --lr 0.01 --momentum 0.8 --schedule cosine --warmup 0.5 --label-smoothing 0.1 --ema 0.5 "
        "--clip 1 --hold-out 0.1 --keep best --test-every 1 --deterministic --tensorboard",
        "--schedule step --milestones 0.4,0.8 --gamma 0.2 --distillation 0.3 --temperature 2 --teacher TEACHER",
        "--schedule plateau --patience 0 --gamma 0.5 --hold-out 0.2 --teacher TEACHER --teacher-model "
        "tiny_network:build",
        "--schedule constant --precision bf16 --seed 3 --half",
    ],
    ids=["average", "step", "plateau", "constant"],
)
def test_an_epoch_with_every_option(ldnq, tiny, trained, workdir, words):
    options = words.replace("TEACHER", str(trained.weights)).split()
    first = [*tiny[:2], "--dataset", "digits", "--image-size", 32, "--batch-size", 32, "--epochs", 1, "--threads", 1]
    precision = [] if "--precision" in options else ["--precision", 32]
    result = ldnq("train", *first, *precision, *options, "--output", "run")
    assert result.code == 0, result.err
    tensors, card = checkpoints.read(workdir / "run" / NAME)
    assert card["top1"] is not None
    rows = curves.read(workdir / "run/training.csv")
    assert [row["epoch"] for row in rows] == [1]
    assert rows[0]["test_top1"] == pytest.approx(card["top1"], abs=0.3 if "--half" in options else 1e-3)
    assert ("held_out_top1" in rows[0]) == ("--hold-out" in options) == (workdir / "run/best.pt").exists()
    assert (workdir / "run/curves.svg").read_text().startswith("<svg")
    # The folder says all that the run was asked for: from there it ends with the same weights.
    (workdir / "run" / NAME).unlink()
    (workdir / "run/state.pt").unlink()
    again = ldnq("train", "--resume", "run")
    assert again.code == 0, again.err
    assert checkpoints.read(workdir / "run" / NAME)[1] == card
    assert all(
        torch.equal(tensor, tensors[name]) for name, tensor in checkpoints.read(workdir / "run" / NAME)[0].items()
    )


def test_images_held_out_are_no_part_of_the_card(ldnq, options, workdir, trained):
    assert ldnq("train", *options, "--hold-out", 0.5, "--output", "run").code == 0
    half, whole = (checkpoints.read(path)[1]["train_images"] for path in (workdir / "run" / NAME, trained.weights))
    assert half == whole - round(whole / 2)
    best = ldnq("evaluate", *options[:2], "--model-arg", "width=10", "--checkpoint", "run/best.pt", *options[2:6])
    assert best.code == 0, best.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--schedule", "step", "--milestones", "1,x"], "Invalid value for '--milestones': 'x' is not a valid float"),
        (["--patience", 3], "expected --patience with --schedule plateau, got schedule one-cycle"),
        (["--temperature", 3], "expected --teacher FILE with --temperature, got no teacher"),
        (["--teacher-model", "resnet20"], "expected --teacher FILE with --teacher-model, got no weights"),
        (["--teacher", "nowhere.safetensors"], "no checkpoint nowhere.safetensors: expected a file of weights"),
        (["--teacher", "WEIGHTS", "--teacher-model", "resnet20"], "belongs to another network"),
        (["--precision", "16", "--device", "cpu"], "expected a CUDA device for precision 16, got a CPU"),
        (["--ema", 1], "expected ema of at least 0 and below 1, got 1.0"),
        (["--hold-out", 0.999], "expected at least 128 images to train on, got"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_cannot_be_trained_so_is_said_in_one_line(ldnq, tiny, trained, words, said):
    words = [str(trained.weights) if word == "WEIGHTS" else word for word in words]
    result = ldnq("train", *tiny[:2], "--dataset", "digits", "--image-size", 32, *words, "--output", "run")
    assert result.code == 2
    assert said in result.err.splitlines()[-1]


def test_house_numbers_of_32_pixels_train_the_network_for_40(ldnq, workdir):
    for split, count in (("train", 48), ("extra", 16), ("test", 20)):
        digits = datasets.get("digits").load(workdir, "train" if split == "extra" else split, False)
        labels = np.where(digits.labels == 0, 10, digits.labels).astype(np.uint8)[:count, None]
        (workdir / "data" / "svhn").mkdir(parents=True, exist_ok=True)
        file = workdir / "data" / "svhn" / f"{split}_32x32.mat"
        savemat(file, {"X": digits.pixels[:count].transpose(1, 2, 3, 0), "y": labels})
    options = ["--model", "svhn-net", "--dataset", "svhn-extra", "--model-arg", "expansion=1"]
    result = ldnq("train", *options, "--epochs", 1, "--batch-size", 16, "--output", "run")
    assert result.code == 0, result.err
    card = checkpoints.read(workdir / "run" / "svhn-net-svhn-extra.safetensors")[1]
    assert (card["preprocessing"]["image_size"], card["train_images"]) == (40, 64)
