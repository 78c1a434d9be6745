"""optimum-quanto's rounding to the nearest level, a scale a channel: no images, for scale.

Its weights of two bits have the levels −2, −1, 0 and 1, of four bits −8 to 7, asymmetric and in groups of 128 inputs
where they can be: more than three levels, and more scales.
"""

import copy
from collections.abc import Callable

from torch import nn
from workbench import Workbench

from ldnq.calibration import CalibrationImages
from ldnq.recalibration import recalibrate


def quanto(bits: int) -> Callable[[Workbench, CalibrationImages, int], nn.Module]:
    """Weights of so many bits; batch norms are recalibrated, as those of all others."""

    def quantize(bench: Workbench, images: CalibrationImages, seed: int) -> nn.Module:
        from optimum import quanto as tool

        quantized = copy.deepcopy(bench.network.module)
        tool.quantize(quantized, weights=tool.qtypes[f"qint{bits}"])
        tool.freeze(quantized)
        recalibrate(quantized, images.batches())
        return quantized.eval()

    return quantize
