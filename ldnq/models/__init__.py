"""Networks: one file per family; `models` is the table of their names."""

import sys

from ldnq.models.registry import ModelFamily, models
from ldnq.registry import import_files

import_files(sys.modules[__name__])

__all__ = ["ModelFamily", "models"]
