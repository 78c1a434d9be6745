"""Widths that a network was not trained for: their batch norms are calibrated."""

from dataclasses import dataclass

import torch

from ldnq.calibration import CalibrationImages
from ldnq.errors import UsageError
from ldnq.progress import track
from ldnq.quantized import QuantizationState
from ldnq.recalibration import recalibrate
from ldnq.switching import NestedLayer, SwitchedNorm, set_width


@dataclass(frozen=True)
class WidthCalibration:
    """More widths for a network of several (Yu et al., arXiv 1911.07346): `bits`, whose batch norms have
    factors between those of their trained neighbours, and the statistics of the calibration images."""

    bits: tuple[int, ...]

    def __call__(
        self, state: QuantizationState, calibration: CalibrationImages, generator: torch.Generator
    ) -> QuantizationState:
        trained = state.precisions
        if trained is None:
            raise UsageError("expected a network of several widths to calibrate more of, found one of one")
        parts = list(state.student.modules())
        norms = [part for part in parts if isinstance(part, SwitchedNorm)]
        layers = [part for part in parts if isinstance(part, NestedLayer)]
        for part in (*norms, *layers):
            for bits in self.bits:
                part.add(bits)
        for bits in track(self.bits, "calibrating widths", lambda bits: f"{bits} bits"):
            set_width(state.student, bits)
            recalibrate(state.student, calibration.batches(), [norm.current for norm in norms])
        state.precisions = layers[0].precisions
        set_width(state.student, trained.widths[-1])
        return state
