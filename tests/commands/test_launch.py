import os

import pytest
from click.testing import CliRunner

import ldnq
from ldnq import runtime
from ldnq.cli import main
from ldnq.commands.launch import _launch
from ldnq.config import RuntimeConfig
from ldnq.errors import UsageError


@pytest.mark.parametrize(
    ("program", "expected", "said"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(2)", 2, ""),
        ("import os; os.environ['RANK'] == '1' and os.kill(os.getpid(), 9)", 1, "error: rank 1 ended by SIGKILL\n"),
    ],
    ids=["all is well", "they say why", "killed"],
)
def test_processes_that_are_started_here_end_with_one_code(program, expected, said, capfd):
    assert _launch(2, ["-c", program]) == expected
    assert capfd.readouterr().err == said


def _torchrun(monkeypatch, rank="0"):
    started = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": rank}
    for name, value in started.items():
        monkeypatch.setitem(os.environ, name, value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 4}, "expected --devices 2, as many as were started, got 4: leave it out"),
        ({"num_nodes": 1}, "expected --num-nodes 2, as many as were started, got 1: leave it out"),
        ({"device": "cpu:0"}, "expected device auto, cpu, cuda or cuda:N, got 'cpu:0'"),
    ],
)
def test_options_that_contradict_the_launcher_are_refused(monkeypatch, options, message):
    _torchrun(monkeypatch)
    with pytest.raises(UsageError, match=f"^{message}$"):
        runtime.start(RuntimeConfig(**{"device": "cpu"} | options), joining=True)


def test_hosts_are_not_started_from_here():
    result = CliRunner().invoke(main, ["train", "--model", "resnet20", "--devices", "2", "--num-nodes", "2"])
    assert result.exit_code == 2
    assert "expected torchrun or srun to start processes on several hosts" in result.stderr


def test_devices_without_a_launcher_are_refused_to_callers():
    with pytest.raises(
        UsageError, match="expected --devices 1, where one process was started, got 2: start them by torchrun"
    ):
        ldnq.evaluate(model="resnet20", dataset="digits", device="cpu", devices=2)


def test_other_commands_are_for_one_process(monkeypatch):
    _torchrun(monkeypatch)
    result = CliRunner().invoke(main, ["list", "models"])
    assert result.exit_code == 2
    assert "expected quantize, qat, train or evaluate in several processes, got list" in result.stderr


def test_slurm_starts_processes_by_srun_alone(monkeypatch):
    for name, value in {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0"}.items():
        monkeypatch.setitem(os.environ, name, value)
    assert runtime._processes(RuntimeConfig()) == (1, 1)
    monkeypatch.setitem(os.environ, "SLURM_STEP_NUM_TASKS", "2")
    assert runtime._processes(RuntimeConfig()) == (2, 1)
