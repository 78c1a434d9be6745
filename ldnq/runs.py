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
from ldnq.quantized import LayerResult, QuantizationState, QuantizedWeight

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

    def kept(self) -> str:
        """What is left of a run that is interrupted."""
        config = self.path / "config.json"
        return f"{config} is saved, 'ldnq quantize --config {config} --output {self.path}' starts again"

    def write_config(self, config: RunConfig) -> None:
        """What the run was asked for, enough to repeat it."""
        write_json(self.path / "config.json", config.to_dict())

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


def default_folder(model: str, dataset: str, kbits: int) -> Path:
    """`results/<model>-<dataset>-k<kbits>-<date-time>`, made here, with a number where another run has the name."""
    name = f"{model}-{dataset}-k{kbits}-{time.strftime('%Y%m%d-%H%M%S')}"
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
        "iterations": result.iterations,
        "seconds": result.seconds,
    }
    return {name: _text(value) for name, value in values.items()}


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _text(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
