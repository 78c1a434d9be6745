"""Many runs of one recipe: every network with every number of levels and every draw, kept side by side."""

import json
import logging
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ldnq.config import RunConfig
from ldnq.errors import LdnqError, UsageError, keeping, shorten
from ldnq.evaluation import Accuracy
from ldnq.launchers import Launcher
from ldnq.pipeline import run
from ldnq.preparation import settle
from ldnq.progress import say, track
from ldnq.report import write_comparison
from ldnq.runs import RunFolder
from ldnq.tables import Summary, write_tables

log = logging.getLogger(__name__)

# Of each run its folder, the name that it is reported by, and what went wrong, "" if nothing.
Outcomes = Generator[tuple[Path, str, str], None, None]
# Neither changes what comes out.
IDLE = {"data": ("download",), "calibration": ("resample",), "runtime": ("device", "workers", "threads")}


@dataclass(frozen=True)
class Sweep:
    """The runs of `config` with each of `models`, `kbits` and `seeds`, in folders of their own below `output`: here one
    after the other, or by a `launcher`."""

    config: RunConfig
    models: Sequence[str]
    kbits: Sequence[int]
    seeds: Sequence[int]
    output: Path
    launcher: Launcher | None = None

    def __call__(self) -> tuple[list[Summary], list[str]]:
        """Run what is not there yet, and return what all have come to, and the names of runs or networks that failed;
        `sweep.csv` and `sweep.md` are kept up to date, `comparison.html` is written at the end.

        Raises `UsageError` where a folder holds another run.
        """
        runs = {self._folder(config): settle(config) for config in self._configurations()}
        done = {folder: metrics for folder, config in runs.items() if (metrics := finished(folder, config))}
        if done:
            log.info("%d of %d runs are there already", len(done), len(runs))
        failed: list[str] = []
        outcomes = self._outcomes({folder: config for folder, config in runs.items() if folder not in done})
        with (
            keeping(lambda: f"{len(done)} of {len(runs)} runs are in {self.output}, the same command goes on"),
            closing(outcomes),
        ):
            for folder, name, error in outcomes:
                metrics = None if error else finished(folder, runs[folder])
                if metrics is None:
                    log.warning("%s: %s", name, error or f"ended without results, see {folder}")
                    failed.append(name)
                    continue
                done[folder] = metrics
                if metrics["teacher_top1"] is not None:
                    say("top-1 {teacher_top1:.2f}%, quantized {quantized_top1:.2f}%".format_map(metrics))
                write_tables(self.output, self._in_order(runs, done))
        if not done:
            return [], failed
        write_comparison([folder for folder in runs if folder in done], self.output / "comparison.html")
        return write_tables(self.output, self._in_order(runs, done)), failed

    def _outcomes(self, runs: Mapping[Path, RunConfig]) -> Outcomes:
        if self.launcher is None:
            return one_by_one(runs)
        return launched(runs, self.launcher)

    @staticmethod
    def _in_order(runs: Iterable[Path], done: Mapping[Path, dict[str, Any]]) -> list[dict[str, Any]]:
        return [done[folder] for folder in runs if folder in done]

    def _configurations(self) -> list[RunConfig]:
        return [
            replace(
                self.config,
                network=replace(self.config.network, model=model),
                recipe=replace(self.config.recipe, kbits=kbits),
                calibration=replace(self.config.calibration, seed=seed),
            )
            for model, kbits, seed in product(self.models, self.kbits, self.seeds)
        ]

    def _folder(self, config: RunConfig) -> Path:
        return self.output / f"{config.network.file_name}-k{config.recipe.kbits}-s{config.calibration.seed}"


def no_runs(failed: Sequence[str]) -> UsageError:
    """What is said in the end of runs or networks that failed."""
    return UsageError(f"no runs of {shorten(failed)}, see above: the same command tries them again")


def one_by_one(runs: Mapping[Path, RunConfig]) -> Outcomes:
    """All runs in this process, the float network measured once; of a network that cannot be quantized the first."""
    failed: set[str] = set()
    teachers: dict[str, Accuracy | None] = {}
    for folder in track(list(runs), "runs", lambda folder: folder.name):
        model = runs[folder].network.model
        if model in failed:
            continue
        try:
            teachers[model] = run(runs[folder], folder, teacher=teachers.get(model)).teacher
        except LdnqError as error:
            failed.add(model)
            yield folder, model, str(error)
        else:
            yield folder, model, ""


def launched(runs: Mapping[Path, RunConfig], launcher: Launcher) -> Outcomes:
    """All runs by other processes, each as 'ldnq quantize --resume' goes on with its folder."""
    if not runs:
        return
    commands = {}
    for folder, config in runs.items():
        run_folder = RunFolder.create(folder)
        if run_folder.begun:
            check_same(folder, config)
        else:
            run_folder.write_config(_with_threads(config, launcher.together).to_dict())
        commands[folder] = [sys.executable, "-m", "ldnq", "quantize", "--resume", str(folder)]
    with closing(launcher(commands)) as outcomes:
        for folder, error in track(outcomes, "runs", lambda outcome: outcome[0].name, total=len(commands)):
            yield folder, folder.name, error


def _with_threads(config: RunConfig, together: int) -> RunConfig:
    """Of torch's own choice of threads the part of one of so many runs."""
    if config.runtime.threads or not together:
        return config
    return replace(config, runtime=replace(config.runtime, threads=max(1, torch.get_num_threads() // together)))


def finished(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """The metrics of the run of `config` in `folder`, None where it has not ended.

    Raises `UsageError` where another run has.
    """
    run_folder = RunFolder(folder)
    if not run_folder.metrics.exists():
        return None
    check_same(folder, config)
    return json.loads(run_folder.metrics.read_text(encoding="utf-8"))


def check_same(folder: Path, config: RunConfig) -> None:
    """Raise `UsageError` where the run in `folder` is of another `config`, but for what changes no result."""
    theirs, ours = json.loads((folder / "config.json").read_text(encoding="utf-8")), config.to_dict()
    for part, options in json.loads(json.dumps(ours)).items():
        for name, value in options.items():
            found = theirs.get(part, {}).get(name)
            if found != value and name not in IDLE.get(part, ()):
                raise UsageError(f"{folder} holds a run of {name} {found}, not {value}: use another --output")
