"""The methods of training with quantized layers: for each, what becomes of a layer's weights and inputs."""

from typing import ClassVar, Protocol

from torch import nn

from ldnq.quantizers.inputs import InputQuantizer
from ldnq.quantizers.parametrized import Quantizer
from ldnq.registry import Registry


class Method(Protocol):
    """A frozen dataclass whose fields are its options; `binary` where inputs become signs. `widths` are those of a
    network that learns at several."""

    binary: ClassVar[bool] = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Ascending; none where there is only one."""
        return ()

    def weights(self, layer: nn.Module) -> Quantizer | None:
        """What computes the weights of `layer`, a Conv2d or Linear, from latent values that start as they are; None
        where they stay float."""

    def inputs(self, layer: nn.Module, normalized: bool) -> InputQuantizer | None:
        """What rounds the inputs of `layer`, which come out of a batch norm if they are `normalized`; None where they
        stay float."""


methods: Registry[type[Method]] = Registry("method")
