"""What every run leaves, however its network came to be quantized."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldnq.calibration import CalibrationImages
from ldnq.data import Data
from ldnq.evaluation import Accuracy
from ldnq.findings import find_details
from ldnq.formats import h5
from ldnq.preprocessing import Preprocessing
from ldnq.quantized import QuantizationState, QuantizedModel
from ldnq.runs import RunFolder


@dataclass(frozen=True)
class RunResult:
    """What a run made, the folder it is kept in, and how good the `teacher` is."""

    model: QuantizedModel
    metrics: dict[str, Any]
    folder: Path
    teacher: Accuracy | None


def left_float(state: QuantizationState) -> dict[str, str]:
    """Layers that were not quantized, and why."""
    return {layer.name: layer.reason for layer in state.skipped}


def accuracy_metrics(teacher: Accuracy | None, quantized: Accuracy | None) -> dict[str, Any]:
    """Of the float network and of the quantized one, None where it was not measured."""
    measured = quantized or teacher
    return {
        "eval_samples": measured.samples if measured else 0,
        "teacher_top1": teacher and teacher.top1,
        "teacher_top5": teacher and teacher.top5,
        "quantized_top1": quantized and quantized.top1,
        "quantized_top5": quantized and quantized.top5,
        "top1_drop": teacher and quantized and teacher.top1 - quantized.top1,
    }


def save(
    folder: RunFolder,
    state: QuantizationState,
    model: QuantizedModel,
    images: CalibrationImages,
    data: Data,
    preprocessing: Preprocessing,
    teacher: Accuracy | None,
    quantized: Accuracy | None,
) -> dict[str, Any]:
    """Write the layers, the details and the checkpoint of a run that ended in `state`; returns metrics of them."""
    folder.write_layers(state)
    details = find_details(state, images, data, preprocessing, teacher, quantized)
    details.save(folder.details)
    sizes = h5.save(model, folder.model)
    return {
        "agreement": details.outcomes and details.outcomes.agreement,
        "float_bytes": model.float_bytes,
        "packed_bytes": sizes["total"],
        "packed_parts": sizes,
        "bits_per_weight": model.bits_per_weight,
        "skipped_layers": len(state.skipped),
    }
