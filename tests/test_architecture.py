"""Imports run downward only."""

import ast
from pathlib import Path

import pytest

import ldnq

PACKAGE = Path(ldnq.__file__).parent

# From the ground up: a room may import from rows before its own, and from its own row only where that says so.
ROWS = [
    ["errors"],
    ["ranks", "heartbeat"],
    ["config", "registry", "catalogue", "files", "progress", "extras"],
    ["hdf5", "tensorboard", "soundness", "losses", "training_recipe", "launchers"],
    ["details", "curves", "schedules", "training_state"],
    ["codebook", "grid", "packing", "preprocessing", "augmentation", "runtime", "graph", "wiring", "recalibration"],
    ["synchronized"],
    ["live", "nesting", "correlations", "unfolded", "store"],
    ["walk", "curvature", "products", "complexity", "precisions"],
    ["switching"],
    ["problem", "moments", "joints", "quantized", "datasets", "models"],
    ["lattice"],
    ["quantizers", "solvers", "calibration", "evaluation", "checkpoints", "data", "runs", "folding"],
    ["report"],
    ["stages", "training", "network", "synthesis", "journal", "findings", "tables"],
    ["formats", "presets", "training_data"],
    ["measurement", "export", "preparation", "sensitivity", "results", "appraisal"],
    ["survey", "allocation", "recipe"],
    ["pipeline", "baseline", "qat"],
    ["sweep"],
    ["api"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
HEIGHT = {room: height for height, row in enumerate(ROWS) for room in row}
FILES = sorted(PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Rooms that the file imports at its top level, when it is read rather than when a function runs."""
    rooms = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ldnq":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return rooms & HEIGHT.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_imports_only_from_below(path):
    room = _room(path)
    if room == "__init__":
        assert not _imports(path)
        return
    assert room in HEIGHT, f"{room} has no row yet"
    too_high = {other for other in _imports(path) if other != room and HEIGHT[other] >= HEIGHT[room]}
    assert not too_high


def test_solvers_know_no_networks():
    for path in (PACKAGE / "solvers").glob("*.py"):
        assert "nn" not in path.read_text(encoding="utf-8").split()
        assert _imports(path) <= {"errors", "problem", "lattice", "codebook", "registry", "solvers"}
