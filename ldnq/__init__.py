"""Post-training quantization of convolutional networks to power-of-two weights, from very little data."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldnq.formats import load as load
    from ldnq.formats.h5 import save as save
    from ldnq.pipeline import quantize as quantize

__version__ = "0.1.0"
__all__ = ["load", "quantize", "save"]

_HOMES = {"load": "ldnq.formats", "quantize": "ldnq.pipeline", "save": "ldnq.formats.h5"}


def __getattr__(name: str):
    # Torch takes seconds to import: only what needs it pays.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ldnq' has no attribute {name!r}")
