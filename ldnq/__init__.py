"""Post-training quantization of convolutional networks to power-of-two weights, from very little data."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldnq.api import evaluate as evaluate
    from ldnq.api import quantize as quantize
    from ldnq.api import sample as sample
    from ldnq.api import train as train
    from ldnq.formats import load as load
    from ldnq.formats.h5 import save as save

__version__ = "0.1.0"
__all__ = ["evaluate", "load", "quantize", "sample", "save", "train"]

_HOMES = {
    "evaluate": "ldnq.api",
    "load": "ldnq.formats",
    "quantize": "ldnq.api",
    "sample": "ldnq.api",
    "save": "ldnq.formats.h5",
    "train": "ldnq.api",
}


def __getattr__(name: str) -> object:
    # Torch takes seconds to import: only what needs it pays.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ldnq' has no attribute {name!r}")
