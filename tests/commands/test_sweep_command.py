"""`ldnq sweep`: all combinations once, whatever happens in between, and what they come to."""

import csv
import json
import os
import statistics
import sys

import pytest

from ldnq import pipeline, sweep
from ldnq.tables import Summary, plot, spread


@pytest.fixture
def words(tiny):
    """A sweep of two numbers of levels and two draws into `out`."""
    options = [*tiny[2:], "--samples", 30, "--no-training", "--preset", "fast", "--output", "out"]
    return ["sweep", "--models", tiny[1], "--kbits", "3,7", "--seeds", 2, *options]


def _rows(folder):
    return list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))


def test_a_sweep_runs_all_combinations_and_prints_mean_and_spread(ldnq, words, workdir):
    result = ldnq(*words)
    assert result.code == 0, result.err
    # The float network is the same four times.
    names = [f"tiny_network.build-k{kbits}-s{seed}" for kbits in (3, 7) for seed in (0, 1)]
    rows = _rows(workdir / "out")
    assert [(row["kbits"], row["seed"]) for row in rows] == [("3", "0"), ("3", "1"), ("7", "0"), ("7", "1")]
    for name, row in zip(names, rows):
        metrics = json.loads((workdir / "out" / name / "metrics.json").read_text())
        assert float(row["quantized_top1"]) == metrics["quantized_top1"]
        assert metrics["calibration_samples"] == 30
    found = [float(row["quantized_top1"]) for row in rows[:2]]
    expected = f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f}"
    assert expected in (workdir / "out" / "sweep.md").read_text()
    assert expected in result.out
    assert (workdir / "out" / "sweep.svg").read_text().count("<svg") == 1

    again = ldnq(*words)
    assert "4 of 4 runs are there already" in again.err
    assert again.out == result.out
    assert _rows(workdir / "out") == rows

    other = ldnq(*words, "--scale", "channel")
    assert other.code == 2
    assert "holds a run of scale layer, not channel: use another --output" in other.err


def test_an_interrupted_sweep_goes_on_where_it_was(ldnq, words, workdir, monkeypatch):
    run, teachers = pipeline.run, []

    def stop_at_the_third(config, folder, teacher):
        teachers.append(teacher)
        if len(teachers) == 3:
            raise KeyboardInterrupt
        return run(config, folder, teacher=teacher)

    monkeypatch.setattr(sweep, "run", stop_at_the_third)
    result = ldnq(*words)
    assert result.code == 130
    assert result.err.splitlines()[-1] == "interrupted: 2 of 4 runs are in out, the same command goes on"
    assert len(_rows(workdir / "out")) == 2
    # The float network is measured once.
    assert teachers[0] is None
    assert teachers[1].top1 == teachers[2].top1
    assert ldnq(*words).code == 0
    assert len(teachers) == 5
    assert len(_rows(workdir / "out")) == 4


def test_a_network_without_weights_does_not_stop_the_others(ldnq, tiny, workdir):
    options = ["--dataset", "digits", "--samples", 20, "--preset", "fast", "--output", "out"]
    result = ldnq("sweep", "--models", "resnet44,tiny_network:wrong", "--kbits", "3,5", *options)
    assert result.code == 2
    lines = [line for line in result.err.splitlines() if line.startswith(("warning", "error"))]
    assert len(lines) == 1, lines
    assert "cannot import wrong" in lines[0]
    result = ldnq("sweep", "--models", "resnet44,resnet110", "--kbits", "3,5", *options)
    assert result.code == 2
    assert result.err.count("warning: ") == 2
    assert result.err.splitlines()[-1].startswith("error: no runs of resnet44, resnet110, see above")


def test_processes_of_their_own_come_to_the_same_and_one_that_fails_is_one_line(
    ldnq, words, tiny, trained, workdir, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(trained.folder), *sys.path]))
    words = [*words[3:4], "3", *words[7:-1]]
    here = ldnq("sweep", "--models", tiny[1], *words, "here")
    assert here.code == 0, here.err
    # What is there is left to nobody.
    assert ldnq("sweep", "--models", tiny[1], *words, "here", "--launcher", "slurm").out == here.out
    # The weights are another network's.
    there = ldnq("sweep", "--models", f"{tiny[1]},resnet20", *words, "there", "--launcher", "local", "--jobs", 2)
    assert there.code == 2
    (warning,) = (line for line in there.err.splitlines() if line.startswith("warning: resnet"))
    assert "resnet20-k3-s0: " in warning
    assert "belongs to another network" in warning
    assert there.err.splitlines()[-1].startswith("error: no runs of resnet20-k3-s0, see above")
    assert there.out.splitlines()[:3] == here.out.splitlines()[:3]
    assert (workdir / "there" / "sweep.md").read_text() == (workdir / "here" / "sweep.md").read_text()
    assert "top-1" in (workdir / "there" / "tiny_network.build-k3-s0" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected --models NAME"),
        (["--models", "resnet20", "--jobs", 2], "expected --launcher local or slurm with --jobs, got none"),
        (
            ["--models", "resnet20", "--launcher", "local", "--slurm", "time=5"],
            "expected --launcher slurm with --slurm",
        ),
        (["--models", "resnet20", "--launcher", "slurm", "--slurm", "time"], "expected NAME=VALUE, got 'time'"),
        (["--models", "resnet20", "--launcher", "pbs"], "'pbs' is not one of 'local', 'slurm'"),
        (["--models", "resnet20", "--kbits", "3,4"], "expected kbits of 3, 5, 7, 9, 11 or auto, got 4"),
        (["--models", "resnet20", "--kbits", "a"], "'a' is not a valid integer"),
        (["--models", "resnet20", "--kbits", ","], "expected values with commas between them"),
        (["--models", "resnet21"], "unknown model 'resnet21'"),
        (["--models", "resnet20", "--ratio", 0.1, "--samples", 3], "expected --ratio or --samples, got both"),
    ],
)
def test_bad_input_is_one_line(ldnq, workdir, words, message):
    result = ldnq("-q", "sweep", *words)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err
    assert not (workdir / "results").exists()


def test_options_may_stand_in_a_configuration(ldnq, tiny, workdir):
    (workdir / "sweep.toml").write_text(
        f'models = "tiny_network:build"\ncheckpoint = "{tiny[3]}"\ndataset = "digits"\nkbits = [5]\nsamples = 20\n'
        'training = false\npreset = "fast"\n'
    )
    result = ldnq("sweep", "--config", "sweep.toml", "--output", "out")
    assert result.code == 0, result.err
    assert [row["kbits"] for row in _rows(workdir / "out")] == ["5"]


def test_runs_without_labels_are_compared_by_size(tmp_path):
    summary = Summary("mine", 3, None, (), 1000.0, 16000, 1.6, 2)
    assert summary.row() == ("mine", "3", "2", "", "", "", "1,000", "16.0x", "1.60")
    plot(tmp_path / "sweep.svg", [summary])


@pytest.mark.parametrize("size", [1000.0, 6029.0, 10_000.0])
def test_a_single_run_is_a_plot(tmp_path, size):
    plot(tmp_path / "sweep.svg", [Summary("mine", 3, 98.2, (98.4,), size, 160_000, 1.6, 1)])
    assert "<svg" in (tmp_path / "sweep.svg").read_text()


@pytest.mark.parametrize(("values", "text"), [([], ""), ([1.0], "1.00"), ([1.0, 2.0, 3.0], "2.00 ± 1.00")])
def test_spread_is_the_deviation_of_a_sample(values, text):
    assert spread(values) == text
