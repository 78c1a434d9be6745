"""The folder that a run leaves behind."""

import csv
import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ldnq import ranks
from ldnq.errors import UsageError
from ldnq.files import write_json, write_text
from ldnq.quantized import LayerResult, QuantizationState, QuantizedWeight

COLUMNS = (
    "name", "kind", "shape", "kbits", "scale_min", "scale_max", "zero_fraction", "relative_error", "sqnr_db",
    "iterations", "seconds", "reason",
)  # fmt: skip


class RunFolder:
    """`config.json`, written first, then `layers.csv`, `details.h5`, `model.h5` and `metrics.json`, each whole or not
    there; until then `journal` holds what is finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model.h5"
        self.details = path / "details.h5"
        self.metrics = path / "metrics.json"
        self.journal = path / "journal.safetensors"
        self.training = path / "state.pt"

    @property
    def begun(self) -> bool:
        """Whether there is something of an interrupted run to go on from."""
        return any(self.path.glob("journal*.safetensors"))

    def journal_of(self, kbits: int) -> Path:
        """That of a part of the run that has so many levels, where it has several; 0 is the whole."""
        return self.journal.with_stem(f"journal-{kbits}") if kbits else self.journal

    def forget(self) -> None:
        """Remove what an interrupted run would go on from."""
        for journal in self.path.glob("journal*.safetensors"):
            journal.unlink()

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

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs from writing here; raises `UsageError` where one does."""
        if not ranks.first():
            yield
            return
        lock = FileLock(self.path / ".lock", blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise UsageError(f"another run is writing to {self.path}: wait for it, or use another --output") from error
        try:
            for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
            yield
        finally:
            (self.path / ".lock").unlink(missing_ok=True)
            lock.release()

    def kept(self) -> str:
        """What is left of a run that is interrupted."""
        return f"all finished layers are kept, 'ldnq quantize --resume {self.path}' goes on"

    def write_config(self, tables: Mapping[str, Any]) -> None:
        """What the run was asked for, enough to repeat it: tables of options."""
        write_json(self.path / "config.json", tables)

    def write_layers(self, state: QuantizationState) -> None:
        """One row a layer in the order of execution, then those that stayed float."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for result in state.results:
            writer.writerow(_row(result, state.weights[result.layer.weight_name]))
        for layer in state.skipped:
            row = {"name": layer.name, "kind": layer.kind, "shape": _shape(layer.shape), "reason": layer.reason}
            writer.writerow(row)
        write_text(self.path / "layers.csv", text.getvalue())

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """The run's results, written last."""
        write_json(self.metrics, metrics)


def default_folder(model: str, dataset: str, what: str) -> Path:
    """`results/<model>-<dataset>-<what>-<date-time>`, made here, with a number where another run has the name."""
    name = f"{model}-{dataset}-{what}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in count(1):
        path = Path("results") / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


def _row(result: LayerResult, weight: QuantizedWeight) -> dict[str, str]:
    values: dict[str, float | str] = {
        "name": result.layer.name,
        "kind": result.layer.kind,
        "shape": _shape(result.layer.shape),
        "kbits": weight.codebook.num_levels,
        "scale_min": float(weight.scale.min()),
        "scale_max": float(weight.scale.max()),
        "zero_fraction": weight.zero_fraction,
        "relative_error": result.relative_error,
        "sqnr_db": result.sqnr_db,
        "iterations": max(0, len(result.errors) - 1),
        "seconds": result.seconds,
    }
    return {name: _text(value) for name, value in values.items()}


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _text(value: float | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6g}"
