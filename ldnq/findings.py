"""What a finished run leaves for its report to show."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldnq.calibration import CalibrationImages
from ldnq.data import Data
from ldnq.datasets.images import Images
from ldnq.details import Details, LayerDetails, Outcomes
from ldnq.evaluation import Accuracy
from ldnq.folding import fold_batch_norms
from ldnq.preprocessing import Preprocessing
from ldnq.quantized import QuantizationState

BINS = 96
# Of the float weights, within the histogram; the rest counts as lying at its ends.
WITHIN = 0.999
# Beyond the outermost level, at least.
MARGIN = 1.15
# Images kept of those that the networks disagree on, and the pixels of their longer side at most.
THUMBNAILS, PIXELS = 18, 96


def find_details(
    state: QuantizationState,
    images: CalibrationImages,
    data: Data,
    preprocessing: Preprocessing,
    teacher: Accuracy | None,
    student: Accuracy | None,
) -> Details:
    """Of a run that ended in `state`, with the accuracies measured if there are test images."""
    layers = _layers(state, images)
    theirs, ours = (accuracy and accuracy.predictions for accuracy in (teacher, student))
    if not (theirs and ours and data.test):
        return Details(layers)
    outcomes = Outcomes(
        theirs.labels.numpy(),
        theirs.classes.numpy(),
        theirs.confidences.numpy(),
        ours.classes.numpy(),
        ours.confidences.numpy(),
    )
    shown = outcomes.disagreements(THUMBNAILS).tolist()
    pictures = {index: _picture(data.test, index, preprocessing) for index in shown}
    return Details(layers, outcomes, data.class_names, pictures)


def _layers(state: QuantizationState, images: CalibrationImages) -> tuple[LayerDetails, ...]:
    """The quantized layers of a finished run."""
    teacher = state.teacher
    if state.folded:
        # Weights are compared with weights that a batch norm has scaled in the same way.
        teacher = fold_batch_norms(teacher, {}, next(iter(images.batches()))[:2])[0]
    found = []
    for result in state.results:
        name = result.layer.weight_name
        weight = state.weights[name]
        counts = torch.bincount(weight.codes.flatten().long(), minlength=weight.codebook.num_levels)
        levels = np.array(weight.codebook.levels, np.float32)
        scale = weight.scale.view(-1, *[1] * (weight.codes.dim() - 1))
        histogram, reach = _histogram(teacher.get_parameter(name).detach().cpu() / scale, float(levels[-1]))
        shares = (counts / counts.sum()).numpy()
        errors = np.array(result.errors, np.float32)
        found.append(LayerDetails(result.layer.name, levels, shares, histogram, reach, errors))
    return tuple(found)


def _picture(images: Images, index: int, preprocessing: Preprocessing) -> bytes:
    """Image number `index` as the networks saw it, made small, as JPEG."""
    image = Image.fromarray(preprocessing.to_uint8(images.picture(index)).permute(1, 2, 0).numpy())
    image.thumbnail((PIXELS, PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def _histogram(values: Tensor, largest_level: float) -> tuple[np.ndarray, float]:
    """Counts of `values` in equal bins from −reach to reach, and that reach."""
    magnitudes = values.abs().double().flatten().numpy()
    reach = max(MARGIN * largest_level, float(np.quantile(magnitudes, WITHIN)))
    clipped = values.double().flatten().numpy().clip(-reach, reach)
    return np.histogram(clipped, BINS, (-reach, reach))[0], reach
