"""Quantization with gradients, one file per method: `methods` is the table of those that train, `kinds` that of how
layers round their inputs."""

import sys

from ldnq.quantizers.inputs import kinds
from ldnq.quantizers.methods import methods
from ldnq.registry import import_files

import_files(sys.modules[__name__])

__all__ = ["kinds", "methods"]
