"""The journal of a run: where it is, written after every layer, so that a run that was stopped goes on from there."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ldnq import ranks
from ldnq.checkpoints import write_safetensors
from ldnq.codebook import Codebook
from ldnq.errors import CheckpointError, UsageError
from ldnq.graph import Layer, SkippedLayer
from ldnq.quantized import Journal, LayerResult, QuantizationState, QuantizedWeight

FORMAT_VERSION = 1
KEY = "ldnq.journal"
STUDENT, CODES, SCALE = "student.", "codes.", "scale."
# States of the random generator: when the stage under way began, and now.
BEGUN, NOW = "begun", "now"


class FileJournal(Journal):
    """Keeps the state of a run in the file `path`; `circumstances`, plain values by their names, are what the run must
    have in common with one that goes on from there."""

    def __init__(self, path: Path, circumstances: Mapping[str, Any]) -> None:
        self.path = path
        self.circumstances = json.loads(json.dumps(circumstances))
        self.stage = 0
        self.begun = torch.empty(0)
        self.now: Tensor | None = None

    def restore(self, state: QuantizationState, generator: torch.Generator) -> int:
        """Bring `state` and `generator` to where the stage under way began, with the layers that are finished since;
        returns the number of that stage.

        Raises `CheckpointError` where the file is damaged, `UsageError` that says what differs where it is of a run
        under other circumstances.
        """
        found = ranks.agreed(self._read)
        if found is None:
            return 0
        entries, tensors = found
        for name, value in _differing(entries["circumstances"], self.circumstances):
            raise UsageError(f"{self.path.parent} holds an unfinished run with {name} {value}: use another --output")
        state.student.load_state_dict(_below(STUDENT, tensors))
        for name, levels in entries["weights"].items():
            codebook = Codebook(tuple(levels))
            state.write(name, QuantizedWeight(tensors[CODES + name], tensors[SCALE + name], codebook))
        state.results = [_result(entry) for entry in entries["results"]]
        state.skipped = [SkippedLayer(**entry | {"shape": tuple(entry["shape"])}) for entry in entries["skipped"]]
        generator.set_state(tensors[BEGUN])
        self.now = tensors[NOW]
        return entries["stage"]

    def begin(self, stage: int, state: QuantizationState, generator: torch.Generator) -> None:
        """Note that the stage of this number begins, unless it is the one that was under way."""
        self.stage, self.begun = stage, generator.get_state()
        if self.now is None:
            self.note(state, generator)

    def catch_up(self, generator: torch.Generator) -> None:
        """Bring `generator` to where it was after the last layer that is finished."""
        if self.now is not None:
            generator.set_state(self.now)
            self.now = None

    def note(self, state: QuantizationState, generator: torch.Generator) -> None:
        """Write the file anew."""
        if not ranks.first():
            return
        tensors = {STUDENT + name: tensor.cpu() for name, tensor in state.student.state_dict().items()}
        for name, weight in state.weights.items():
            tensors |= {CODES + name: weight.codes, SCALE + name: weight.scale}
        entries = {
            "format_version": FORMAT_VERSION,
            "circumstances": self.circumstances,
            "stage": self.stage,
            "weights": {name: weight.codebook.levels for name, weight in state.weights.items()},
            "results": [asdict(result) for result in state.results],
            "skipped": [asdict(layer) for layer in state.skipped],
        }
        generators = {BEGUN: self.begun, NOW: generator.get_state()}
        write_safetensors(self.path, tensors | generators, {KEY: json.dumps(entries)})

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                entries = json.loads((file.metadata() or {})[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} is damaged: remove it to start over, or use another --output"
            ) from error
        if entries.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(f"{self.path} was written by another version of ldnq: use another --output")
        return entries, tensors


def digest(module: nn.Module) -> str:
    """A short text that is equal for equal weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _differing(found: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names of entries that differ, and how."""
    for name in expected.keys() | found.keys():
        theirs, ours = found.get(name), expected.get(name)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            yield from _differing(theirs, ours, f"{prefix}{name} ")
        elif theirs != ours:
            yield prefix + name, f"{theirs!r}, not {ours!r}"


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _result(entry: dict[str, Any]) -> LayerResult:
    layer = Layer(**entry["layer"] | {"shape": tuple(entry["layer"]["shape"])})
    return LayerResult(**entry | {"layer": layer, "errors": tuple(entry["errors"])})
