"""A finished run as its folder tells it."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ldnq import curves
from ldnq.details import Details
from ldnq.errors import UsageError

FILES = ("config.json", "metrics.json", "layers.csv")
# Of the metrics; runs of earlier versions lack what has a default.
NEEDED = {
    "model", "dataset", "method", "preset", "solver", "kbits", "scale", "abits", "calibration_samples",
    "synthesized_samples", "eval_samples", "teacher_top1", "teacher_top5", "quantized_top1", "quantized_top5",
    "top1_drop", "float_bytes", "packed_bytes", "bits_per_weight", "quantizing_seconds", "seconds", "environment",
}  # fmt: skip
DEFAULTS = {"command": None, "agreement": None}


@dataclass(frozen=True)
class Record:
    """The run in folder `path`: its `config`, `metrics`, rows of `layers`, `details` where it has left any, and the
    `curves` of a training, a row an epoch.

    `label` tells it from the runs it is compared with.
    """

    path: Path
    config: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Any]
    rows: Sequence[Mapping[str, str]]
    details: Details | None
    curves: Sequence[Mapping[str, float]] = ()
    label: str = ""

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Raises `UsageError` where no run has ended in `path`."""
        missing = [name for name in FILES if not (path / name).is_file()]
        if missing:
            raise UsageError(f"expected a finished run in {path}, found no {missing[0]}: give the folder of a run")
        try:
            config, metrics = (json.loads((path / name).read_text(encoding="utf-8")) for name in FILES[:2])
            rows = list(csv.DictReader((path / FILES[2]).read_text(encoding="utf-8").splitlines()))
            absent = NEEDED - metrics.keys() or {"name", "kbits", "relative_error", "reason"} - rows[0].keys()
            if absent:
                raise ValueError(f"no {min(absent)}")
        except (ValueError, IndexError, AttributeError) as error:
            raise UsageError(f"expected a run of 'ldnq quantize' or 'ldnq qat' in {path}, found other files") from error
        details, table = path / "details.h5", path / curves.FILE
        return cls(
            path,
            config,
            DEFAULTS | metrics,
            rows,
            Details.load(details) if details.is_file() else None,
            curves.read(table) if table.is_file() else (),
        )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting by its name."""
        return {name: value for part in self.config.values() for name, value in part.items()}

    @property
    def quantized(self) -> Iterator[Mapping[str, str]]:
        """The rows of the layers that are not float."""
        return (row for row in self.rows if not row["reason"])

    @cached_property
    def errors(self) -> dict[str, float]:
        """The relative reconstruction error of each layer that has one: those that were trained have none."""
        return {row["name"]: float(row["relative_error"]) for row in self.quantized if row["relative_error"]}

    @property
    def float_layers(self) -> list[Mapping[str, str]]:
        """The rows of those that are."""
        return [row for row in self.rows if row["reason"]]
