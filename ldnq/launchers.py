"""Commands run by other processes: several at once on this machine, or as jobs of SLURM. Of what they do nothing is
known here but where it is noted and whether it ended well."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ldnq.errors import UsageError, shorten
from ldnq.extras import require

log = logging.getLogger(__name__)

# Commands by the folder that they write to, and of each that has ended its folder and what went wrong, "" if nothing.
Commands = Mapping[Path, Sequence[str]]
Outcomes = Generator[tuple[Path, str], None, None]

LOG = "log.txt"
# Seconds: between two looks at processes and at jobs, and until a process that is asked to end is made to.
PAUSE, SLURM_PAUSE, GRACE = 0.1, 5.0, 20.0
# Of a job, and how often one that has run out of them is queued again.
MINUTES, MOST_TIMES = 60, 100


class Launcher(Protocol):
    """Runs commands, each to its end; closed before that it ends them all. They share this machine's threads if it runs
    `together` so many here."""

    @property
    def together(self) -> int: ...

    def __call__(self, commands: Commands) -> Outcomes: ...


@dataclass(frozen=True)
class Local:
    """Processes of this machine, `jobs` at once; of several `gpus` each has one."""

    jobs: int
    gpus: Sequence[str] = ()

    @property
    def together(self) -> int:
        return self.jobs

    def __call__(self, commands: Commands) -> Outcomes:
        waiting, free = list(commands.items())[::-1], list(range(self.jobs))[::-1]
        working: dict[Path, tuple[int, subprocess.Popen]] = {}
        try:
            while waiting or working:
                while waiting and free:
                    (folder, words), place = waiting.pop(), free.pop()
                    working[folder] = place, self._start(folder, words, place)
                for folder, (place, process) in list(working.items()):
                    if process.poll() is not None:
                        del working[folder]
                        free.append(place)
                        yield folder, complaint(process.returncode, folder)
                time.sleep(PAUSE)
        finally:
            end([process for _, process in working.values()])

    def _start(self, folder: Path, words: Sequence[str], place: int) -> subprocess.Popen:
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[place % len(self.gpus)]} if self.gpus else {}
        with (folder / LOG).open("w", encoding="utf-8") as file:
            # In a session of its own: Ctrl-C is for the one who launched it, who ends it in turn.
            return subprocess.Popen(  # noqa: S603
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=os.environ | gpu, start_new_session=True
            )


@dataclass(frozen=True)
class Slurm:
    """Jobs of SLURM by submitit, at most `jobs` at once, all of them where that is 0; `options` are those of sbatch as
    submitit calls them, and its notes are in `folder`. `cluster` is another that submitit knows, to try it without."""

    folder: Path
    jobs: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    cluster: str = "slurm"

    @property
    def together(self) -> int:
        return 0

    def __call__(self, commands: Commands) -> Outcomes:
        left = self._submit(commands)
        log.info("submitted as jobs %s", shorten([job.job_id for job in left.values()]))
        try:
            while left:
                for folder, job in list(left.items()):
                    if job.done():
                        del left[folder]
                        yield folder, _outcome(job, folder)
                time.sleep(SLURM_PAUSE if self.cluster == "slurm" else PAUSE)
        finally:
            for job in left.values():
                job.cancel(check=False)

    def _submit(self, commands: Commands) -> dict[Path, Any]:
        """The jobs by their folders, in one array."""
        submitit = require("submitit", "slurm")
        at_once = {"array_parallelism": self.jobs} if self.jobs else {}
        options = {"job_name": "ldnq", "time": MINUTES} | at_once | self.options
        try:
            executor = submitit.AutoExecutor(self.folder, self.cluster, slurm_max_num_timeout=MOST_TIMES)
            executor.update_parameters(**{f"slurm_{name}": value for name, value in options.items()})
            with executor.batch():
                return {folder: executor.submit(Task(list(words), folder)) for folder, words in commands.items()}
        except NameError as error:  # which submitit raises about names of its parameters, a line each
            raise UsageError(f"cannot use the options of SLURM: {str(error).splitlines()[0]}") from error
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            told = " ".join(str(error).split())
            raise UsageError(f"cannot submit jobs to SLURM: {told}; --launcher local needs none") from error


@dataclass(frozen=True)
class Task:
    """A command as a job. One that runs out of time is queued again, and goes on where it was."""

    words: list[str]
    folder: Path

    def __call__(self) -> int:
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            return subprocess.run(self.words, stdin=subprocess.DEVNULL, stdout=file, stderr=file).returncode  # noqa: S603

    def checkpoint(self) -> Any:
        """What is queued in its place; submitit asks for it."""
        return require("submitit.helpers", "slurm").DelayedSubmission(self)


def _outcome(job: Any, folder: Path) -> str:
    try:
        return complaint(job.result(), folder)
    except Exception:  # whatever has become of it: cancelled, out of memory, its node gone
        return f"job {job.job_id} ended without a result ({job.state}), see {job.paths.stderr}"


def complaint(status: int, folder: Path) -> str:
    """What went wrong with a command that ended with the exit code `status`, "" if nothing: its last word on it, or how
    it ended."""
    if status == 0:
        return ""
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
    return told[-1] if told and status > 0 else f"ended by {how}, see {folder / LOG}"


def end(processes: Sequence[subprocess.Popen]) -> None:
    """Ask all to end, and make those that do not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def visible_gpus() -> tuple[str, ...]:
    """Those that a process started here may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
    return tuple(name for name in named.split(",") if name)
