"""Names that users type, and what they stand for."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Generic, TypeVar

from ldnq.errors import UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named things of one `kind` (the word used in messages), filled by the files of a package."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Enter `entry` under `name`; a name is given once."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of `add`."""
        return lambda entry: self.add(name, entry)

    def get(self, name: str) -> T:
        """The entry called `name`; raises `UsageError` with the nearest names."""
        if name in self._entries:
            return self._entries[name]
        raise UsageError(unknown_name(self.kind, name, list(self)))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """One line that says `name` is not a known `kind` and suggests up to three that are near, or all of few."""
    near = difflib.get_close_matches(name, known, n=3)
    if near or len(known) > 12:
        hint = f"did you mean {' or '.join(near)}?" if near else f"see 'ldnq list {kind}s'"
    else:
        hint = f"expected one of {', '.join(known)}"
    return f"unknown {kind} {name!r}: {hint}"


def import_files(package: ModuleType) -> None:
    """Import every module of `package`, so that each file enters what it defines."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
