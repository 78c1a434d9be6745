"""Names of the formats that a quantized network can be exported to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor

from ldnq.quantized import QuantizedModel
from ldnq.registry import Registry


@dataclass(frozen=True)
class Opened:
    """A file in the runtime it is made for: quantized `weights` as that dequantizes them, by their names, and `forward`
    from a batch of inputs to outputs. Where the runtime rewrites the file, `as_written` computes what it says."""

    weights: Mapping[str, Tensor]
    forward: Callable[[Tensor], Tensor]
    as_written: Callable[[Tensor], Tensor] | None = None


class Format(Protocol):
    """A frozen dataclass whose fields are its options; formats derive from it."""

    suffix: ClassVar[str]

    def write(self, model: QuantizedModel, path: Path, example: Tensor) -> None:
        """Write `model` to `path`; `example` is a batch of inputs."""

    def open(self, path: Path, model: QuantizedModel) -> Opened:
        """What `write` wrote, without a look at the values in `model`."""

    def remarks(self, path: Path, model: QuantizedModel) -> list[tuple[str, str]]:
        """What more there is to say of the file: names and values."""
        return []


formats: Registry[type[Format]] = Registry("format")
