"""Packages that only some commands need."""

from importlib import import_module
from types import ModuleType

from ldnq.errors import UsageError


def require(module: str, extra: str) -> ModuleType:
    """The `module`, imported; raises `UsageError` that names the `extra` that brings it where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(f"expected the package {package}, found none: pip install 'ldnq[{extra}]'") from error
