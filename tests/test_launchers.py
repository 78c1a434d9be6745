"""Commands in other processes: how many at once, what is said of those that fail, that all end with their launcher."""

import os
import sys
import time
from contextlib import closing
from importlib import import_module

import pytest

from ldnq import launchers
from ldnq.errors import UsageError
from ldnq.launchers import LOG, Local, Slurm, visible_gpus


@pytest.fixture
def commands(tmp_path):
    """`commands(a="sleep 1")` is a command of the shell in a folder of its own for each name."""

    def write(**lines: str) -> dict:
        for name in lines:
            (tmp_path / name).mkdir()
        return {tmp_path / name: ["sh", "-c", line] for name, line in lines.items()}

    return write


def names(outcomes) -> dict[str, str]:
    return {folder.name: error for folder, error in outcomes}


def test_every_command_is_run_and_what_it_says_is_kept(commands, tmp_path):
    found = names(Local(2)(commands(a="echo out; echo err >&2", b="true", c="true")))
    assert found == {"a": "", "b": "", "c": ""}
    assert (tmp_path / "a" / LOG).read_text() == "out\nerr\n"


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_so_many_are_run_at_once(commands, tmp_path, jobs):
    # Each says how many there are besides it, some time after it has begun.
    line = f"mkdir {tmp_path}/on-$$; sleep 0.4; ls -d {tmp_path}/on-* | wc -l; sleep 0.3; rmdir {tmp_path}/on-$$"
    asked = commands(**dict.fromkeys("abcd", line))
    assert set(names(Local(jobs)(asked)).values()) == {""}
    assert max(int((folder / LOG).read_text()) for folder in asked) == min(jobs, 4)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("echo starting; echo 'error: expected a, got b: use c' >&2; exit 2", "expected a, got b: use c"),
        ("echo Traceback; exit 1", "ended by exit code 1, see"),
        ("kill -KILL $$", "ended by SIGKILL, see"),
    ],
    ids=["one-line", "a-traceback", "a-signal"],
)
def test_what_went_wrong_is_one_line_and_the_others_go_on(commands, tmp_path, line, expected):
    found = names(Local(2)(commands(bad=line, good="true")))
    assert found["good"] == ""
    assert found["bad"].startswith(expected)
    assert found["bad"] == expected or found["bad"].endswith(f"{tmp_path}/bad/{LOG}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("deaf", [False, True], ids=["that-listen", "that-do-not"])
def test_processes_end_with_their_launcher(commands, tmp_path, monkeypatch, deaf):
    monkeypatch.setattr(launchers, "GRACE", 0.5)
    trap = "trap '' TERM; " if deaf else ""
    asked = commands(first="true", a=f"{trap}echo $$; while true; do sleep 0.1; done", b="true")
    with closing(Local(2)(asked)) as outcomes:
        assert next(outcomes)[0].name == "first"
        deadline = time.monotonic() + 5
        while not (said := (tmp_path / "a" / LOG).read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert _alive(int(said))
    assert not _alive(int(said))


def test_each_place_has_a_gpu(commands, tmp_path):
    asked = commands(**dict.fromkeys("abcd", "echo $CUDA_VISIBLE_DEVICES; sleep 0.3"))
    list(Local(4, ("3", "GPU-5"))(asked))
    assert sorted((folder / LOG).read_text().strip() for folder in asked) == ["3", "3", "GPU-5", "GPU-5"]


def test_gpus_are_those_that_the_environment_leaves(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible_gpus() == ("2", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestJobs:
    """By submitit's own executor for one machine, which runs jobs as SLURM would."""

    @pytest.fixture(autouse=True)
    def _submitit(self):
        pytest.importorskip("submitit")

    def test_jobs_are_run_and_those_that_fail_are_told_apart(self, commands, tmp_path):
        asked = commands(good="echo done", bad="echo 'error: expected a, got b' >&2; exit 2")
        found = names(Slurm(tmp_path / "slurm", cluster="local")(asked))
        assert found == {"good": "", "bad": "expected a, got b"}
        assert (tmp_path / "good" / LOG).read_text() == "done\n"

    def test_a_job_that_is_killed_is_told_where_to_look(self, commands, tmp_path, monkeypatch):
        # Seconds that submitit waits for what a job may have written last.
        monkeypatch.setattr(import_module("submitit.core.core").Job, "_results_timeout_s", 1)
        found = names(Slurm(tmp_path / "slurm", cluster="local")(commands(a="kill -KILL $PPID")))
        assert found["a"].startswith("job ")
        assert "ended without a result" in found["a"]

    def test_without_slurm_there_is_one_line(self, commands, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(UsageError, match=r"cannot submit jobs to SLURM: .*; --launcher local needs none") as error:
            next(Slurm(tmp_path / "slurm")(commands(a="true")))
        assert "\n" not in str(error.value)

    def test_other_options_are_refused(self, commands, tmp_path):
        with pytest.raises(UsageError, match=r"cannot use the options of SLURM: .*'partitoin'") as error:
            next(Slurm(tmp_path / "slurm", options={"partitoin": "gpu"}, cluster="local")(commands(a="true")))
        assert "\n" not in str(error.value)


def test_without_the_package_the_extra_is_named(commands, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"pip install 'ldnq\[slurm\]'"):
        next(Slurm(tmp_path / "slurm")(commands(a="true")))
