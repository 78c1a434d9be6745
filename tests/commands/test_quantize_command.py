import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from filelock import FileLock

import ldnq as package
from ldnq import checkpoints, formats
from ldnq.config import RunConfig
from ldnq.network import build

METRICS = {
    "model", "dataset", "method", "solver", "kbits", "levels", "scale", "seed", "calibration_samples", "eval_samples",
    "teacher_top1", "teacher_top5", "quantized_top1", "quantized_top5", "top1_drop", "float_bytes", "packed_bytes",
    "bits_per_weight", "seconds", "quantizing_seconds",
}  # fmt: skip


def _layers(folder):
    return list(csv.DictReader((folder / "layers.csv").read_text().splitlines()))


def _metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_a_run_leaves_config_metrics_layers_and_model(ldnq, tiny, workdir):
    result = ldnq("quantize", *tiny, "--kbits", 5, "--output", "run")
    assert result.code == 0, result.err
    assert "levels: {0, ±α, ±2α} (5 values)" in result.err
    assert sorted(path.name for path in (workdir / "run").iterdir()) == [
        "config.json", "details.h5", "layers.csv", "metrics.json", "model.h5", "report.html",
    ]  # fmt: skip
    metrics = _metrics(workdir / "run")
    assert metrics.keys() >= METRICS
    assert metrics["levels"] == [-2, -1, 0, 1, 2]
    assert metrics["top1_drop"] == pytest.approx(metrics["teacher_top1"] - metrics["quantized_top1"])
    assert metrics["packed_bytes"] == (workdir / "run/model.h5").stat().st_size
    assert math.log2(5) < metrics["bits_per_weight"] < math.log2(5) + 0.2
    assert metrics["teacher_top1"] > 85
    assert metrics["quantized_top1"] > 75
    assert f"{metrics['quantized_top1']:.2f}%" in result.out


def test_two_processes_make_the_same_codes_scales_and_metrics(tiny, trained, workdir):
    words = ["--preset", "balanced", "--distillation-steps", 4, "--samples", 30, "--views", 1, "--threads", 1]
    command = [sys.executable, "-m", "ldnq", "quantize", *tiny, *words, "--output"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(trained.folder), *sys.path])}
    for name in ("one", "two"):
        subprocess.run([str(word) for word in (*command, name)], check=True, capture_output=True, env=environment)
    one, two = (formats.read(workdir / name / "model.h5") for name in ("one", "two"))
    for name, weight in one.weights.items():
        assert torch.equal(weight.codes, two.weights[name].codes)
        assert torch.equal(weight.scale, two.weights[name].scale)
    assert all(torch.equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items())
    changing = {"seconds", "quantizing_seconds", "command", "packed_bytes", "packed_parts"}
    ours, theirs = ({k: v for k, v in _metrics(workdir / name).items() if k not in changing} for name in ("one", "two"))
    assert ours == theirs


def test_the_fast_preset_takes_no_gradient_step_and_keeps_most_of_the_accuracy(ldnq, tiny, workdir):
    result = ldnq("quantize", *tiny, "--preset", "fast", "--output", "fast")
    assert result.code == 0, result.err
    assert ldnq("quantize", *tiny, "--preset", "paper", "--no-training", "--output", "paper").code == 0
    fast, paper = _metrics(workdir / "fast"), _metrics(workdir / "paper")
    assert (fast["solver"], fast["preset"]) == ("coordinate-descent", "fast")
    assert fast["quantized_top1"] > paper["quantized_top1"]
    assert fast["packed_bytes"] == pytest.approx(paper["packed_bytes"], rel=0.03)  # codes deflated
    again = ldnq("quantize", "--config", "fast/config.json", "--no-training", "--output", "again")
    assert again.code == 0, again.err
    assert _metrics(workdir / "again")["quantized_top1"] == fast["quantized_top1"]


def test_a_network_is_quantized_without_any_data(ldnq, tiny, workdir):
    none = ("--no-calibration-data", "--synthesize", 20, "--preset", "fast")
    result = ldnq("quantize", *tiny, *none, "--output", "run")
    assert result.code == 0, result.err
    metrics = _metrics(workdir / "run")
    assert (metrics["calibration_samples"], metrics["synthesized_samples"]) == (0, 20)
    assert metrics["quantized_top1"] > 50
    assert "0, and 20 synthesized" in result.out
    assert not (workdir / "calib_data").exists()
    real = ldnq("quantize", "--config", "run/config.json", "--samples", 20, "--synthesize", 0, "--output", "real")
    assert real.code == 0, real.err
    assert _metrics(workdir / "real")["calibration_samples"] == 20


def test_a_network_without_any_images_is_quantized_but_not_measured(ldnq, tiny, workdir):
    weights = ["--model", "tiny_network:build", "--checkpoint", tiny[3], "--dataset", "cifar10"]
    result = ldnq("quantize", *weights, "--no-calibration-data", "--synthesize", 4, "--preset", "fast", "-o", "run")
    assert result.code == 0, result.err
    assert "not measured" in result.out
    assert _metrics(workdir / "run")["teacher_top1"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--no-calibration-data"], "give --synthesize N"),
        (["--no-calibration-data", "--synthesize", 9, "--samples", 9], "expected --no-calibration-data or --samples"),
        (["--no-calibration-data", "--synthesize", 9, "--calibration", "x.h5"], "or --calibration, got both"),
    ],
    ids=["nothing at all", "and a draw", "and a set"],
)
def test_no_data_and_data_are_told_apart(ldnq, tiny, words, message):
    result = ldnq("quantize", *tiny, *words)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_distillation_goes_on_from_the_fast_preset(ldnq, tiny, workdir):
    result = ldnq("-v", "quantize", *tiny, "--preset", "balanced", "--distillation-steps", "10", "--output", "run")
    assert result.code == 0, result.err
    assert "distillation starts at" in result.err
    plain = ldnq("-v", "quantize", *tiny, "--preset", "balanced", "--no-training", "--output", "plain")
    assert plain.code == 0, plain.err
    assert "distillation" not in plain.err
    assert _metrics(workdir / "run")["quantized_top1"] > _metrics(workdir / "plain")["quantized_top1"] - 3


def test_the_accuracy_of_the_file_is_the_accuracy_reported(ldnq, tiny, workdir):
    ldnq("quantize", *tiny, "--no-training", "--output", "run")
    again = ldnq("evaluate", "run/model.h5", "--model", "tiny_network:build", "--json")
    assert json.loads(again.out)["top1"] == _metrics(workdir / "run")["quantized_top1"]


def test_the_file_without_its_factory_is_refused_in_one_line(ldnq, tiny):
    ldnq("quantize", *tiny, "--no-training", "--output", "run")
    result = ldnq("evaluate", "run/model.h5")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "--model" in result.err


def test_layers_are_listed_with_what_became_of_them(ldnq, tiny, workdir):
    ldnq("quantize", *tiny, "--no-training", "--skip", "6", "--scale", "channel", "--output", "run")
    rows = _layers(workdir / "run")
    assert [row["name"] for row in rows] == ["0", "3", "11", "6"]
    assert rows[3]["reason"] == "--skip 6"
    model = package.load(workdir / "run/model.h5", build("tiny_network:build", {}))
    weight = model.module[3].weight.detach()
    for row in rows[:3]:
        assert float(row["sqnr_db"]) == pytest.approx(-10 * math.log10(float(row["relative_error"])), abs=1e-3)
    assert float(rows[1]["zero_fraction"]) == pytest.approx(float((weight == 0).float().mean()), abs=1e-5)
    scales = weight.abs().flatten(1).amax(1)
    assert float(rows[1]["scale_max"]) == pytest.approx(float(scales.max()), rel=1e-5)
    assert float(rows[1]["scale_min"]) <= float(scales[scales > 0].min()) * (1 + 1e-5)
    # The skipped layer is the float one, bit for bit.
    float_model = checkpoints.read(tiny[3])[0]
    assert torch.equal(model.module[6].weight, float_model["6.weight"])


def test_a_configuration_repeats_its_run(ldnq, tiny, workdir):
    first = ldnq("quantize", *tiny, "--kbits", 7, "--samples", 60, "--seed", 3, "--output", "one")
    assert first.code == 0, first.err
    again = ldnq("quantize", "--config", "one/config.json", "--output", "two")
    assert again.code == 0, again.err
    with h5py.File("one/model.h5") as one, h5py.File("two/model.h5") as two:
        for name in ("codes", "scales", "tensors"):
            assert np.array_equal(one[name], two[name])
    changed = ldnq("quantize", "--config", "one/config.json", "--kbits", 3, "--no-training", "--output", "three")
    assert changed.code == 0
    assert _metrics(workdir / "three")["kbits"] == 3
    assert _metrics(workdir / "three")["calibration_samples"] == 60


def test_more_levels_reconstruct_better(ldnq, tiny, workdir):
    errors = []
    for kbits in (3, 5, 7):
        ldnq("quantize", *tiny, "--kbits", kbits, "--no-training", "--output", f"k{kbits}")
        rows = _layers(workdir / f"k{kbits}")
        errors.append(float(rows[0]["relative_error"]))
    assert errors == sorted(errors, reverse=True)


def test_without_an_output_the_run_gets_a_folder_of_its_own(ldnq, tiny, workdir):
    assert ldnq("quantize", *tiny, "--no-training").code == 0
    (folder,) = (workdir / "results").iterdir()
    assert folder.name.startswith("tiny_network.build-digits-k3-")


def test_an_image_folder_without_a_test_split_is_quantized_but_not_measured(ldnq, tiny, workdir, digit_files):
    shutil.copytree(digit_files / "train", workdir / "mine" / "train")
    result = ldnq(
        "quantize", *tiny[:4], "--dataset", "folder", "--data-root", "mine", "--no-training", "--output", "run"
    )
    assert result.code == 0, result.err
    assert "accuracy is not measured" in result.err
    assert _metrics(workdir / "run")["quantized_top1"] is None


def test_a_flat_folder_of_unlabelled_images_does_for_calibration(ldnq, tiny, workdir, digit_files):
    (workdir / "flat").mkdir()
    for number, path in enumerate(sorted(digit_files.glob("train/*/*.png"))):
        shutil.copy(path, workdir / "flat" / f"{number}.png")
    result = ldnq(
        "quantize", *tiny[:4], "--dataset", "folder", "--data-root", "flat", "--no-training", "--output", "run"
    )
    assert result.code == 0, result.err
    assert _metrics(workdir / "run")["calibration_samples"] == 100


def test_an_image_folder_with_both_splits_is_measured(ldnq, tiny, workdir, digit_files):
    result = ldnq(
        "quantize", *tiny[:4], "--dataset", "folder", "--data-root", digit_files, "--no-training", "--output", "run"
    )
    assert result.code == 0, result.err
    assert _metrics(workdir / "run")["eval_samples"] == 60


def _bad_inputs(workdir, digit_files, tiny):
    junk = workdir / "junk.pt"
    junk.write_bytes(b"not a checkpoint" * 100)
    foreign = workdir / "foreign.pt"
    torch.save(build("resnet20", {}).state_dict(), foreign)
    empty = workdir / "empty"
    shutil.copytree(digit_files, empty)
    (empty / "train" / "x").mkdir()
    corrupt = workdir / "corrupt"
    shutil.copytree(digit_files, corrupt)
    for path in corrupt.glob("train/*/*.png"):
        path.write_bytes(path.read_bytes()[:60])
    other = workdir / "other.h5"
    call_sample(other, digit_files)
    file = workdir / "file"
    file.write_text("")
    return {
        "unknown model": (["--model", "resnet21"], "unknown model 'resnet21'"),
        "unknown dataset": ([*tiny[:4], "--dataset", "cifar11"], "unknown dataset 'cifar11'"),
        "unknown solver": ([*tiny, "--solver", "magic"], "unknown solver 'magic': expected one of admm, "),
        "kbits 4": ([*tiny, "--kbits", "4"], "'3', '5', '7', '9', '11'"),
        "missing folder": ([*tiny[:4], "--dataset", "cifar10", "--data-root", "nowhere"], "no folder nowhere"),
        "empty class": ([*tiny[:4], "--dataset", "folder", "--data-root", empty], "holds no images"),
        "corrupt image": ([*tiny[:4], "--dataset", "folder", "--data-root", corrupt], "cannot decode image"),
        "junk checkpoint": ([*tiny[:2], "--checkpoint", junk, *tiny[4:]], "is not a file of weights"),
        "other network's": ([*tiny[:2], "--checkpoint", foreign, *tiny[4:]], "missing: "),
        "ratio 0": ([*tiny, "--ratio", "0"], "a ratio above 0 and at most 1"),
        "ratio 2": ([*tiny, "--ratio", "2"], "a ratio above 0 and at most 1"),
        "other calibration set": ([*tiny, "--calibration", other], "was drawn from folder"),
        "output is a file": ([*tiny, "--output", file], "found the file"),
        "ratio and samples": ([*tiny, "--ratio", "0.1", "--samples", "9"], "--ratio or --samples, got both"),
        "set and samples": ([*tiny, "--calibration", other, "--samples", "9"], "--calibration or --samples, got both"),
        "no such device": ([*tiny, "--device", "tpu"], "expected device auto, cpu"),
        "unknown factory": (["--model", "no_such:thing", *tiny[4:]], "cannot import thing"),
    }


def call_sample(path, digit_files):
    from ldnq.calibration import draw
    from ldnq.config import CalibrationConfig
    from ldnq.datasets.folder import load_folder

    draw(load_folder(digit_files, "train"), "folder", CalibrationConfig(samples=20)).save(path)


def test_bad_input_is_one_line_and_exit_code_2(ldnq, tiny, workdir, digit_files):
    for name, (words, message) in _bad_inputs(workdir, digit_files, tiny).items():
        result = ldnq("-q", "quantize", "--no-training", *words)
        lines = [line for line in result.err.splitlines() if not line.startswith("warning:")]
        assert result.code == 2, name
        assert len(lines) == 1, (name, lines)
        assert message in lines[0], (name, lines)
        assert lines[0].startswith("error: "), name
        assert result.out == "", name


def test_a_network_that_guesses_is_refused_before_quantizing(ldnq, tiny, workdir):
    torch.save(build("tiny_network:build", {}).state_dict(), "random.pt")
    result = ldnq(
        "quantize", *tiny[:2], "--checkpoint", "random.pt", *tiny[4:], "--image-size", "32", "--output", "run"
    )
    assert result.code == 2
    assert "near chance" in result.err
    assert not (workdir / "run/model.h5").exists()


def test_options_beside_a_configuration_win(ldnq, tiny, workdir):
    first = ldnq("quantize", *tiny, "--model-arg", "width=12", "--samples", 60, "--no-training", "--output", "one")
    assert first.code == 0, first.err
    again = ldnq("quantize", "--config", "one/config.json", "--output", "two")
    assert again.code == 0, again.err
    assert json.loads((workdir / "two/config.json").read_text())["network"]["model_args"] == {"width": 12}
    other = ldnq("quantize", "--config", "one/config.json", "--ratio", 0.1, "--output", "three")
    assert other.code == 0, other.err
    assert _metrics(workdir / "three")["calibration_samples"] == 135


def test_the_schedule_of_the_cascade_is_the_users(ldnq, tiny, workdir):
    paper = (*tiny, "--preset", "paper")
    ldnq("quantize", *paper, "--no-training", "--output", "none")
    ldnq("quantize", *paper, "--cascade-epochs", 0, "--output", "zero")
    ldnq("quantize", *paper, "--cascade-epochs", 2, "--cascade-lr", 0.01, "--output", "two")
    with h5py.File("none/model.h5") as none, h5py.File("zero/model.h5") as zero, h5py.File("two/model.h5") as two:
        assert np.array_equal(none["codes"], zero["codes"])
        assert not np.array_equal(none["tensors"], two["tensors"])
    assert json.loads((workdir / "two/config.json").read_text())["recipe"]["cascade_epochs"] == 2


def test_bfloat16_passes_see_weights_as_they_are_now(ldnq, tiny, workdir):
    result = ldnq("quantize", *tiny, "--precision", "bf16", "--kbits", 9, "--output", "run")
    assert result.code == 0, result.err
    metrics = _metrics(workdir / "run")
    assert metrics["top1_drop"] < 5


def test_curves_of_gradient_steps_are_written_for_tensorboard(ldnq, tiny, workdir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = ("--distillation-steps", 10, "--block-steps", 3, "--cascade-epochs", 2, "--samples", 40)
    assert ldnq("quantize", *tiny, *steps, "--tensorboard", "--output", "run").code == 0
    found = EventAccumulator(str(workdir / "run" / "tensorboard")).Reload()
    losses = found.Scalars("distillation/loss")
    assert [event.step for event in losses] == list(range(1, 11))
    assert all(event.value > 0 for event in losses)
    assert [event.step for event in found.Scalars("distillation/held-out")] == [2, 4, 6, 8, 10]
    # Each of four layers has two epochs after it, but the last, after which nothing learns.
    epochs = [event.step for event in found.Scalars("cascade/loss")]
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) >= 6
    assert "parameters/3.parametrizations.weight.original" in found.Tags()["histograms"]


def test_a_finished_run_is_not_written_over(ldnq, tiny):
    ldnq("quantize", *tiny, "--no-training", "--output", "run")
    result = ldnq("quantize", *tiny, "--no-training", "--output", "run")
    assert (result.code, result.err.count("holds a finished run")) == (2, 1)


def test_layers_named_on_the_command_line_have_levels_of_their_own(ldnq, tiny, workdir):
    named = ("--kbits-for", "*", "--kbits-for=3=9")
    assert ldnq("quantize", *tiny, *named).code == 2
    named = ("--kbits", 5, "--kbits-for", "1*=7", "--kbits-for", "3=9")
    result = ldnq("quantize", *tiny, "--no-training", *named, "--output", "run")
    assert result.code == 0, result.err
    assert "levels of 3: {0, ±α, ±2α, ±4α, ±8α} (9 values)" in result.err
    levels = {"0": 5, "3": 9, "6": 5, "11": 7}
    assert {row["name"]: int(row["kbits"]) for row in _layers(workdir / "run")} == levels
    metrics = _metrics(workdir / "run")
    assert (metrics["kbits"], metrics["kbits_by_layer"]) == (5, levels)
    assert metrics["levels"] == [-8, -4, -2, -1, 0, 1, 2, 4, 8]
    again = ldnq("quantize", "--config", "run/config.json", "--output", "again")
    assert again.code == 0, again.err
    assert {row["name"]: int(row["kbits"]) for row in _layers(workdir / "again")} == levels


def test_levels_are_chosen_under_a_budget_and_the_same_again(ldnq, tiny, workdir):
    auto = ("--preset", "fast", "--solver", "nearest", "--kbits", "auto", "--target-bits", 2.5)
    result = ldnq("quantize", *tiny, *auto, "--output", "run")
    assert result.code == 0, result.err
    assert "levels: chosen layer by layer for 2.5 bits a weight" in result.err
    metrics = _metrics(workdir / "run")
    assert metrics["kbits"] == "auto"
    assert 2.2 < metrics["bits_per_weight"] <= 2.5 + 1e-6
    levels = {row["name"]: int(row["kbits"]) for row in _layers(workdir / "run")}
    assert metrics["kbits_by_layer"] == levels
    for name, kbits in levels.items():
        assert re.search(rf"^ *{name}\.weight .* {kbits} *$", result.out, re.MULTILINE), name
    tried = list(csv.DictReader((workdir / "run/sensitivity.csv").read_text().splitlines()))
    assert {row["name"] for row in tried} == set(levels)
    again = ldnq("quantize", "--config", "run/config.json", "--output", "again")
    assert again.code == 0, again.err
    with h5py.File("run/model.h5") as one, h5py.File("again/model.h5") as two:
        assert np.array_equal(one["codes"], two["codes"])
    uniform = ldnq("quantize", "--config", "run/config.json", "--kbits", 5, "--output", "uniform")
    assert uniform.code == 0, uniform.err
    assert _metrics(workdir / "uniform")["kbits_by_layer"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kbits", "auto"], "expected --kbits auto with --target-bits BITS"),
        (["--target-bits", 2], "expected --kbits auto with --target-bits BITS"),
        (["--kbits", "auto", "--target-bits", 1.2], "expected target bits of at least 1.585, which 3 levels take"),
        (["--kbits-for", "conv9=5"], "--kbits-for conv9 matches none of the layers: 0, 3"),
        (["--kbits-for", "0"], "expected PATTERN=K, such as 'layer1.*=5', got '0'"),
        (["--kbits-for", "0=4"], "expected kbits of 3, 5, 7, 9, 11 for 0, got 4"),
    ],
    ids=["auto alone", "target alone", "too few bits", "no such layer", "no levels", "levels nobody knows"],
)
def test_levels_that_cannot_be_are_one_line(ldnq, tiny, words, message):
    result = ldnq("-q", "quantize", *tiny, "--preset", "fast", "--solver", "nearest", *words)
    lines = [line for line in result.err.splitlines() if not line.startswith("warning:")]
    assert (result.code, len(lines)) == (2, 1)
    assert message in lines[0]


def _process(tiny, trained, *words):
    paths = [str(trained.folder), *sys.path]
    return subprocess.Popen(
        [sys.executable, "-m", "ldnq", "quantize", *map(str, tiny), "--preset", "fast", *words],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        # In the background of a script Ctrl-C is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on_to_the_same_end(ldnq, tiny, trained, workdir, number):
    assert ldnq("quantize", *tiny, "--preset", "fast", "--threads", 1, "--output", "whole").code == 0
    process = _process(tiny, trained, "--threads", "1", "--output", "run")
    for line in process.stderr:
        if line.startswith("quantizing layers 2"):
            process.send_signal(number)
            break
    process.communicate()
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    # Who is killed while it writes leaves what it has written so far, and its lock.
    left = {path.name for path in (workdir / "run").iterdir() if number != signal.SIGKILL or path.name[0] != "."}
    assert left == {"config.json", "journal.safetensors"}
    result = ldnq("quantize", "--resume", "run")
    assert result.code == 0, result.err
    assert re.search("going on after layer [1-4]", result.err)
    one, two = (package.load(workdir / name / "model.h5", build("tiny_network:build", {})) for name in ("whole", "run"))
    assert all(torch.equal(w.codes, two.weights[name].codes) for name, w in one.weights.items())
    assert all(torch.equal(w.scale, two.weights[name].scale) for name, w in one.weights.items())
    assert len(_layers(workdir / "run")) == 4
    assert not [path.name for path in (workdir / "run").iterdir() if path.name.startswith((".", "journal"))]
    again = ldnq("quantize", "--resume", "run")
    assert (again.code, again.out) == (0, "the run in run is finished: nothing to do\n")


def test_a_run_that_had_not_begun_starts_over(ldnq, tiny, workdir):
    assert ldnq("quantize", *tiny, "--preset", "fast", "--output", "run").code == 0
    for name in ("metrics.json", "model.h5", "layers.csv"):
        (workdir / "run" / name).unlink()
    assert ldnq("quantize", "--resume", "run").code == 0
    assert (workdir / "run/metrics.json").exists()


def test_a_run_that_is_refused_leaves_the_one_before_as_it_was(ldnq, tiny, workdir):
    (workdir / "run").mkdir()
    (workdir / "run/config.json").write_text("{}")
    (workdir / "run/journal.safetensors").write_bytes(b"of another run")
    result = ldnq("quantize", *tiny, "--output", "run")
    assert result.code == 2
    assert "run/journal.safetensors is damaged" in result.err
    assert (workdir / "run/config.json").read_text() == "{}"


def test_one_run_at_a_time_writes_to_a_folder(ldnq, tiny, workdir):
    (workdir / "run").mkdir()
    with FileLock(workdir / "run/.lock"):
        result = ldnq("quantize", *tiny, "--preset", "fast", "--output", "run")
    assert (result.code, result.err.splitlines()[-1]) == (
        2, "error: another run is writing to run: wait for it, or use another --output",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume", "nowhere"], "cannot read configuration nowhere/config.json"),
        (["--resume", "one", "--output", "two"], "--resume goes on in one: leave out --output"),
    ],
)
def test_what_cannot_be_resumed_is_said(ldnq, workdir, words, said):
    if words[1] == "one":
        (workdir / "one").mkdir()
        (workdir / "one/config.json").write_text(json.dumps(RunConfig.from_options({"model": "resnet20"}).to_dict()))
    result = ldnq("quantize", *words)
    assert result.code == 2
    assert said in result.err
