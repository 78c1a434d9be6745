"""The files that carry a training over an interruption."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ldnq.errors import CheckpointError
from ldnq.files import replacing


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Replace `path` by `values`, tensors and plain ones."""
    with replacing(path) as temporary:
        torch.save(dict(values), temporary)


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """The values in `path`, tensors on `device`; raises `CheckpointError` where it is gone or damaged."""
    if not path.exists():
        raise CheckpointError(f"{path} is gone, which the training has written: use another --output")
    try:
        return dict(torch.load(path, map_location=device, weights_only=True))
    except Exception as error:  # damaged files make torch fail in many ways
        raise CheckpointError(f"{path} is damaged: remove it, or use another --output") from error


def check_same(path: Path, found: Any, expected: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` that names the first thing by which the training in `path`, described by `found`, is
    another than the one `expected`."""
    found = found if isinstance(found, Mapping) else {}
    for name, ours in expected.items():
        if (theirs := found.get(name)) != ours:
            what = name.replace("_", " ")
            raise CheckpointError(f"{path} is of {what} {theirs}, not of {ours}: use another --output")
