"""Runs that are stopped in every way there is: what is left, and whether they go on to the same end.

    pip install .
    python benchmarks/interruptions.py

writes `interruptions.md`. The run is ResNet-20 on the digits, preset fast, one thread. A file system that fills up
and a folder that is locked need root's rights (and chattr); without them those rows are left out.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import click
import torch
from rows import HERE, looking, publish, quick_option

from ldnq import formats

COMMAND = [sys.executable, "-m", "ldnq", "quantize"]
RUN = ["--model", "resnet20", "--dataset", "digits", "--preset", "fast", "--threads", "1"]
LESS = ["--samples", "64", "--views", "0"]
HEAD = ["| stopped by | runs | ended with one line or a signal | went on to the same bits |", "|---|---|---|---|"]
# Until the first layer is reached.
WARM_UP = 3.0


@click.command()
@quick_option
@click.option("--only", help="The row to run anew; the others stay as they are.")
@click.option("--kills", default=20, show_default=True, help="Runs that are ended by SIGKILL at random moments.")
def main(quick: bool, only: str | None, kills: int) -> None:
    """Stop runs, let them go on, compare how they end, and write the table."""
    if quick:
        only, kills = only or "SIGKILL at a random moment", 1
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        started = time.perf_counter()
        process = quantize("whole")
        process.communicate()
        lasted, whole = time.perf_counter() - started, Path("whole")
        ways: dict[str, tuple[int, Callable[[Path, float], int]]] = {
            "SIGKILL at a random moment": (kills, lambda run, moment: stop(run, moment, signal.SIGKILL)),
            "SIGTERM": (2, lambda run, moment: stop(run, moment, signal.SIGTERM)),
            "Ctrl-C": (2, lambda run, moment: stop(run, moment, signal.SIGINT)),
            "memory limited while it runs": (5, starve),
            "disk full": (1, fill),
            "folder becomes read-only": (2, lock),
        }
        rng = random.Random(0)
        rows = earlier() if only else {}
        for name, (runs, way) in ways.items():
            if only not in (None, name):
                continue
            clean = same = done = 0
            for number in range(runs):
                try:
                    run, code = stopped(way, f"{len(rows)}-{number}", rng.uniform(WARM_UP, lasted))
                except PermissionError as error:
                    click.echo(f"{name}: {error}")
                    break
                done += 1
                clean += code in (-signal.SIGKILL, 1, 2, 130, 143)
                same += resume(run) and equal(run, whole)
                click.echo(f"{name}: exit code {code}, {clean} clean and {same} the same of {done}")
            if done:
                rows[name] = f"| {name} | {done} | {clean} | {same} |"
        publish("interruptions.md", "\n".join([*HEAD, *(rows[name] for name in ways if name in rows)]) + "\n")


def earlier() -> dict[str, str]:
    """The rows of the table as it is, by their names."""
    lines = (HERE / "interruptions.md").read_text().splitlines()[len(HEAD) :]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def stopped(way: Callable[[Path, float], int], name: str, moment: float) -> tuple[Path, int]:
    """The folder of a run that was stopped so, and its exit code; one that ended before is begun again, and stopped
    earlier."""
    for attempt in count():
        run = Path(f"{name}-{attempt}")
        if code := way(run, moment * 0.7**attempt):
            return run, code
    raise AssertionError("unreachable")


def quantize(*words: str | Path) -> subprocess.Popen:
    """The command, with its remarks kept for later."""
    where = [] if "--resume" in words else [*RUN, *(LESS if looking() else []), "--output"]
    said = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    # In the background of a script Ctrl-C is ignored, and children inherit that.
    return subprocess.Popen(
        [*COMMAND, *where, *map(str, words)],
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **said,
    )


def ended(process: subprocess.Popen) -> int:
    """Its exit code, or 99 where it said more of an error than one line."""
    said = process.communicate()[1]
    return 99 if "Traceback" in said else process.returncode


def stop(run: Path, moment: float, number: int) -> int:
    """Send a signal after so many seconds."""
    process = quantize(run)
    time.sleep(moment)
    process.send_signal(number)
    return ended(process)


def starve(run: Path, moment: float) -> int:
    """Give the process no more address space than it has had for a while."""
    process = quantize(run)
    time.sleep(moment)
    used = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.prlimit(process.pid, resource.RLIMIT_AS, (used, used))
    return ended(process)


@contextmanager
def mounted(run: Path, size: str) -> Iterator[None]:
    """A file system of this size at `run`; raises `PermissionError` where nobody may mount one."""
    run.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", run], capture_output=True).returncode:
        raise PermissionError(f"cannot mount {run}")
    try:
        yield
        kept = run.with_name(run.name + "-kept")
        shutil.copytree(run, kept)
    finally:
        subprocess.run(["umount", run], check=True)
    run.rmdir()
    kept.rename(run)


def fill(run: Path, moment: float) -> int:
    """A disk with room for one journal, not for its successor beside it."""
    with mounted(run, "1600k"):
        return ended(quantize(run))


def lock(run: Path, moment: float) -> int:
    """No file can be made, renamed or removed any more in the folder after so many seconds."""
    process = quantize(run)
    while not (run / "config.json").exists() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(moment)
    if subprocess.run(["chattr", "+i", run], capture_output=True).returncode:
        process.kill()
        process.communicate()
        raise PermissionError(f"cannot lock {run}")
    try:
        return ended(process)
    finally:
        subprocess.run(["chattr", "-i", run], check=True)


def resume(run: Path) -> bool:
    """Whether the run goes on to its end."""
    if not (run / "config.json").exists():
        return ended(quantize(run)) == 0
    return ended(quantize("--resume", run)) == 0


def equal(run: Path, other: Path) -> bool:
    """Whether two runs have the same codes, scales and other tensors."""
    one, two = (formats.read(path / "model.h5") for path in (run, other))
    return all(
        torch.equal(weight.codes, two.weights[name].codes) and torch.equal(weight.scale, two.weights[name].scale)
        for name, weight in one.weights.items()
    ) and all(torch.equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items())


if __name__ == "__main__":
    main()
