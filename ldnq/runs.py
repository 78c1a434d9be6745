"""The folder that a run leaves behind."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from ldnq.config import RunConfig
from ldnq.errors import UsageError
from ldnq.files import write_json, write_text
from ldnq.graph import SkippedLayer
from ldnq.quantized import LayerResult

COLUMNS = (
    "name", "kind", "shape", "kbits", "scale_min", "scale_max", "zero_fraction", "relative_error", "iterations",
    "seconds", "reason",
)  # fmt: skip


class RunFolder:
    """`config.json`, written first, then `layers.csv`, `model.h5` and `metrics.json`, each whole or not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model.h5"
        self.metrics = path / "metrics.json"

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """A folder at `path`, new or of a run that did not end; raises `UsageError` where it cannot be or one did."""
        if path.exists() and not path.is_dir():
            raise UsageError(f"expected a folder to write the run to, found the file {path}: use another --output")
        if (path / "metrics.json").exists():
            raise UsageError(f"{path} holds a finished run: use another --output")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot create the output folder {path}: {error.strerror}") from error
        return cls(path)

    def write_config(self, config: RunConfig) -> None:
        """What the run was asked for, enough to repeat it."""
        write_json(self.path / "config.json", config.to_dict())

    def write_layers(self, results: Sequence[LayerResult], skipped: Sequence[SkippedLayer]) -> None:
        """One row a layer in the order of execution, then those that stayed float."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for r in results:
            values = (r.scale_min, r.scale_max, r.zero_fraction, r.relative_error, r.iterations, r.seconds, "")
            writer.writerow(dict(zip(COLUMNS, (r.name, r.kind, _shape(r.shape), r.num_levels, *map(_number, values)))))
        for s in skipped:
            writer.writerow({"name": s.name, "kind": s.kind, "shape": _shape(s.shape), "reason": s.reason})
        write_text(self.path / "layers.csv", text.getvalue())

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """The run's results, written last."""
        write_json(self.metrics, metrics)


def default_folder(model: str, dataset: str, kbits: int) -> Path:
    """`results/<model>-<dataset>-k<kbits>-<date-time>`, made here, with a number where another run has the name."""
    name = f"{model.replace(':', '.')}-{dataset}-k{kbits}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in count(1):
        path = Path("results") / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _number(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
