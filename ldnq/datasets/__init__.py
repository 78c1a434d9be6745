"""Datasets: one file per family; `datasets` is the table of their names."""

import sys

from ldnq.datasets.registry import DatasetFamily, datasets
from ldnq.registry import import_files

import_files(sys.modules[__name__])

__all__ = ["DatasetFamily", "datasets"]
