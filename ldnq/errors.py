"""Errors that a user can mend. Each message is one line: what was expected, what was found, what to do."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def shorten(names: Sequence[str], most: int = 4) -> str:
    """The first names and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class LdnqError(Exception):
    """Base of every error that ldnq raises on purpose; the command line prints it and exits with code 2."""


class UsageError(LdnqError):
    """An option or argument has a value that cannot be used."""


class DataError(LdnqError):
    """A dataset, an image or a calibration set is missing, damaged or of another kind than expected."""


class CheckpointError(LdnqError):
    """A file of weights is missing, damaged or belongs to another network."""


class NetworkError(LdnqError):
    """A network cannot be run or quantized as it stands."""


class TrainingError(LdnqError):
    """A training has gone astray: its loss or its weights are no numbers to go on with."""


class MissingWeightsError(CheckpointError):
    """There are no weights where they are looked for."""


class ExportError(LdnqError):
    """An exported file does not compute what the network computes."""


# torch has no class of its own for what the processor's memory cannot hold, oneDNN and the linker have texts of theirs.
_LACK = ("allocate", "out of memory", "could not create a primitive", "failed to map segment")


def lacks_memory(error: BaseException) -> bool:
    """Whether there was not enough memory, as far as the error tells."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _LACK)


_kept: list[Callable[[], str]] = []


@contextmanager
def keeping(what: Callable[[], str]) -> Iterator[None]:
    """Whoever interrupts the block is told `what` is kept, and `kept` says so, also after an error in it."""
    _kept.append(what)
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(what()) from error
    _kept.pop()


def kept() -> str:
    """What is kept of the work under way."""
    return _kept[-1]() if _kept else "nothing was saved"
