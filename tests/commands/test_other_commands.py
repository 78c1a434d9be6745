import json
import re
import shutil

import numpy as np
import pytest
import torch

from ldnq import checkpoints, network
from ldnq.calibration import CalibrationSet


def test_training_writes_weights_with_a_model_card(trained):
    tensors, card = checkpoints.read(trained.weights)
    assert tensors["0.weight"].shape == (12, 3, 5, 5)
    assert card["dataset"] == "digits"
    assert card["top1"] > 85
    assert card["recipe"]["epochs"] == 8
    assert card["command"] == (
        "ldnq train --model tiny_network:build --dataset digits --image-size 32 --epochs 8 --lr 0.1 --batch-size 64 "
        "--precision 32"
    )
    losses = [float(line.rsplit(" ", 1)[1]) for line in trained.log.splitlines() if line.startswith("epochs ")]
    assert len(losses) == 8
    assert "8.48 k parameters, 397.25 k multiply-accumulates an image" in trained.log
    assert losses[-1] < losses[0] / 2


def test_interrupted_training_ends_as_if_it_had_not_been(ldnq, tiny, workdir, monkeypatch):
    options = ["train", *tiny[:2], "--dataset", "digits", "--image-size", 32, "--epochs", 2, "--precision", "32"]
    assert ldnq(*options, "--output", "whole").code == 0

    from ldnq.training import Trainer

    save = Trainer._save

    def save_and_stop(trainer):
        save(trainer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", save_and_stop)
        stopped = ldnq(*options, "--output", "parts")
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == (
        "interrupted: 1 of 2 epochs are saved in parts/state.pt, 'ldnq train --resume parts' goes on"
    )
    resumed = ldnq(*options, "--output", "parts")
    assert "going on after epoch 1 of 2" in resumed.err
    name = "tiny_network.build-digits.safetensors"
    whole, parts = (checkpoints.read(workdir / run / name)[0] for run in ("whole", "parts"))
    assert all(np.array_equal(whole[key], parts[key]) for key in whole)


def test_curves_of_training_are_written_for_tensorboard(ldnq, tiny, workdir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["train", *tiny[:2], "--dataset", "digits", "--image-size", 32, "--epochs", 2, "--tensorboard"]
    assert ldnq(*options, "--output", "run").code == 0
    found = EventAccumulator(str(workdir / "run" / "tensorboard")).Reload()
    for name in ("train/loss", "train/learning rate"):
        assert [event.step for event in found.Scalars(name)] == [1, 2]
    assert {"parameters/0.weight", "parameters/11.bias"} <= set(found.Tags()["histograms"])


def test_another_recipe_does_not_continue_a_run(ldnq, tiny):
    options = ["train", *tiny[:2], "--dataset", "digits", "--image-size", 32, "--output", "run"]
    ldnq(*options, "--epochs", 1)
    for changed in (["--epochs", 2], ["--epochs", 1, "--model-arg", "width=8"], ["--epochs", 1, "--std", "1,1,1"]):
        result = ldnq(*options, *changed)
        assert result.code == 2
        assert "use another --output" in result.err


def test_a_training_that_explodes_says_when_and_saves_nothing(ldnq, tiny, workdir):
    options = ["train", *tiny[:2], "--dataset", "digits", "--image-size", 32, "--epochs", 2, "--precision", "32"]
    result = ldnq(*options, "--lr", 1e6, "--output", "run")
    assert result.code == 2
    pattern = r"error: the loss is \S+ at step \d+ of 10 of epoch 1; nothing was saved: try a lower --lr"
    assert re.search(pattern, result.err), result.err
    assert [path.name for path in (workdir / "run").iterdir()] == ["config.json"]


def test_a_training_that_explodes_keeps_the_last_good_epoch(ldnq, tiny, workdir, monkeypatch):
    from ldnq.training import Trainer

    options = ["train", *tiny[:2], "--dataset", "digits", "--image-size", 32, "--epochs", 3, "--precision", "32"]
    train_epoch = Trainer._train_epoch

    def overflow_in_the_second(trainer, forward):
        loss = train_epoch(trainer, forward)
        if trainer.epoch == 1:
            trainer.module[0].weight.data *= 1e38
            trainer.module[0].weight.data *= 1e38
        return loss

    monkeypatch.setattr(Trainer, "_train_epoch", overflow_in_the_second)
    result = ldnq(*options, "--output", "run")
    assert result.code == 2
    assert "0.weight is not finite after epoch 2; epoch 1 is kept in run/state.pt: try a lower --lr" in result.err
    assert torch.load(workdir / "run/state.pt", weights_only=True)["epoch"] == 1


def test_training_goes_on_from_given_weights(ldnq, tiny, trained, workdir):
    options = ["train", *tiny[:2], "--dataset", "digits", "--image-size", 32, "--epochs", 1, "--lr", 1e-6]
    result = ldnq(*options, "--precision", "32", "--init", trained.weights, "--output", "run")
    assert result.code == 0, result.err
    start, end = checkpoints.read(trained.weights)[0], checkpoints.read(workdir / "run" / trained.weights.name)[0]
    assert np.allclose(start["0.weight"], end["0.weight"], atol=1e-4)
    again = ldnq(*options, "--precision", "32", "--output", "run")
    assert (again.code, "use another --output" in again.err) == (2, True)


def test_the_last_layer_starts_anew_where_the_classes_are_others(ldnq, workdir, digit_files):
    for split in ("train", "test"):
        for name in ("3", "8"):
            shutil.copytree(digit_files / split / name, workdir / "two" / split / name)
    shipped = network.shipped_folders()[0] / "resnet20-digits.safetensors"
    result = ldnq(
        "train", "--model", "resnet20", "--dataset", "folder", "--data-root", "two", "--batch-size", 8, "--epochs", 1,
        "--lr", 1e-6, "--init", shipped, "--output", "run",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "linear starts anew" in result.err
    start, end = (checkpoints.read(p)[0] for p in (shipped, workdir / "run" / "resnet20-folder.safetensors"))
    assert end["linear.weight"].shape == (2, 64)
    assert np.allclose(start["layer3.2.conv2.weight"], end["layer3.2.conv2.weight"], atol=1e-4)


def test_weights_of_another_network_are_no_start(ldnq, trained):
    result = ldnq("train", "--model", "resnet20", "--dataset", "digits", "--init", trained.weights, "--output", "run")
    assert result.code == 2
    assert "belongs to another network" in result.err


def test_sample_draws_once_and_prints_the_classes(ldnq, workdir):
    result = ldnq("sample", "--dataset", "digits", "--samples", 50, "--stratified", "--seed", 7)
    assert result.code == 0, result.err
    counts = [int(line.split()[-1]) for line in result.out.splitlines() if "class" in line]
    assert sum(counts) == 50
    assert set(counts) <= {4, 5, 6}
    (path,) = (workdir / "calib_data").iterdir()
    drawn = CalibrationSet.load(path)
    assert len(set(drawn.indices)) == 50
    ldnq("sample", "--dataset", "digits", "--samples", 50, "--stratified", "--seed", 7)
    assert np.array_equal(CalibrationSet.load(path).indices, drawn.indices)


def test_inspect_shows_layers_and_sizes(ldnq, tiny, workdir):
    ldnq("quantize", *tiny, "--kbits", 9, "--no-training", "--output", "run")
    result = ldnq("inspect", "run/model.h5", "--json")
    shown = json.loads(result.out)
    assert shown["bytes"] == (workdir / "run/model.h5").stat().st_size
    assert [(layer["name"], layer["shape"], layer["levels"]) for layer in shown["layers"]] == [
        ("0.weight", "12x3x5x5", 9),
        ("3.weight", "24x6x3x3", 9),
        ("6.weight", "24x24x3x3", 9),
        ("11.weight", "10x96", 9),
    ]
    assert "24x6x3x3" in ldnq("inspect", "run/model.h5").out


def test_evaluate_measures_a_float_network(ldnq, tiny, trained):
    result = ldnq("evaluate", *tiny, "--json")
    card = checkpoints.read(trained.weights)[1]
    assert json.loads(result.out)["top1"] == pytest.approx(card["top1"])


def test_a_network_with_other_outputs_is_refused_before_training(ldnq, tiny):
    result = ldnq("train", "--model", "resnet20", "--dataset", "digits", "--num-classes", 7, "--output", "run")
    assert result.code == 2
    assert "expected one output for each of the 10 classes" in result.err


def test_only_test_images_are_needed_to_evaluate(ldnq, tiny, workdir, digit_files):
    shutil.copytree(digit_files / "test", workdir / "mine" / "val")
    result = ldnq("evaluate", *tiny[:4], "--dataset", "folder", "--data-root", "mine", "--json")
    assert json.loads(result.out)["samples"] == 60
