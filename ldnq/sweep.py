"""Many runs of one recipe: every network with every number of levels and every draw, kept side by side."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ldnq.config import RunConfig
from ldnq.errors import LdnqError, UsageError, keeping
from ldnq.evaluation import Accuracy
from ldnq.pipeline import run
from ldnq.preparation import settle
from ldnq.progress import say, track
from ldnq.report import write_comparison
from ldnq.runs import RunFolder
from ldnq.tables import Summary, write_tables

log = logging.getLogger(__name__)

# Neither changes what comes out.
IDLE = {"data": ("download",), "calibration": ("resample",), "runtime": ("device", "workers", "threads")}


@dataclass(frozen=True)
class Sweep:
    """The runs of `config` with each of `models`, `kbits` and `seeds`, in folders of their own below `output`."""

    config: RunConfig
    models: Sequence[str]
    kbits: Sequence[int]
    seeds: Sequence[int]
    output: Path

    def __call__(self) -> list[Summary]:
        """Run what is not there yet, and return what all have come to; `sweep.csv` and `sweep.md` are kept up to date,
        `comparison.html` is written at the end.

        Raises `UsageError` where a folder holds another run, and at the end where a network could not be quantized.
        """
        runs = {self._folder(config): settle(config) for config in self._configurations()}
        done = {folder: metrics for folder, config in runs.items() if (metrics := finished(folder, config))}
        if done:
            log.info("%d of %d runs are there already", len(done), len(runs))
        failed: dict[str, LdnqError] = {}
        teachers: dict[str, Accuracy | None] = {}
        with keeping(lambda: f"{len(done)} of {len(runs)} runs are in {self.output}, the same command goes on"):
            for folder in track([folder for folder in runs if folder not in done], "runs", lambda folder: folder.name):
                model = runs[folder].network.model
                if model in failed:
                    continue
                try:
                    result = run(runs[folder], folder, teacher=teachers.get(model))
                except LdnqError as error:
                    log.warning("%s: %s", model, error)
                    failed[model] = error
                    continue
                teachers[model] = result.teacher
                done[folder] = result.metrics
                if result.teacher:
                    say("top-1 {teacher_top1:.2f}%, quantized {quantized_top1:.2f}%".format_map(result.metrics))
                write_tables(self.output, [done[folder] for folder in runs if folder in done])
        if failed:
            raise UsageError(f"no runs of {', '.join(failed)}, see above: the same command tries them again")
        write_comparison(list(runs), self.output / "comparison.html")
        return write_tables(self.output, [done[folder] for folder in runs])

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


def finished(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """The metrics of the run of `config` in `folder`, None where it has not ended.

    Raises `UsageError` where another run has.
    """
    run_folder = RunFolder(folder)
    if not run_folder.metrics.exists():
        return None
    theirs, ours = json.loads((folder / "config.json").read_text(encoding="utf-8")), config.to_dict()
    for part, options in json.loads(json.dumps(ours)).items():
        for name, value in options.items():
            found = theirs.get(part, {}).get(name)
            if found != value and name not in IDLE.get(part, ()):
                raise UsageError(f"{folder} holds a run of {name} {found}, not {value}: use another --output")
    return json.loads(run_folder.metrics.read_text(encoding="utf-8"))
