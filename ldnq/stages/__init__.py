"""Stages of quantization: one file each."""

from typing import Protocol

import torch

from ldnq.calibration import CalibrationImages
from ldnq.quantized import QuantizationState


class Stage(Protocol):
    """A frozen dataclass whose fields are its options; it maps a state to the next, and may change the one it got."""

    def __call__(
        self, state: QuantizationState, calibration: CalibrationImages, generator: torch.Generator
    ) -> QuantizationState: ...
