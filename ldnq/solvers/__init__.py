"""Solvers of a `LayerProblem`: one file each; `solvers` is the table of their names."""

import sys

from ldnq.registry import import_files
from ldnq.solvers.registry import solvers

import_files(sys.modules[__name__])

__all__ = ["solvers"]
