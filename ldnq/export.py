"""From a checkpoint to a file that another runtime runs, checked in that runtime."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldnq.calibration import draw
from ldnq.config import CalibrationConfig, DataConfig
from ldnq.data import load_data, resolve_dataset
from ldnq.datasets.images import Prepared, in_memory
from ldnq.errors import DataError, ExportError, UsageError
from ldnq.files import replacing
from ldnq.formats import Format
from ldnq.quantized import QuantizedModel

log = logging.getLogger(__name__)

# Images that an exported network is tried on.
SAMPLES = 128
# Of the largest output: another order of summation in float32, through all layers.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """What was written: `bytes` of the file, `bits_per_weight` of quantized weights, all else but float tensors counted
    in, and on how many images it was `checked`."""

    bytes: int
    bits_per_weight: float
    checked: int


def export(model: QuantizedModel, path: Path, form: Format, images: Tensor, verify: bool = True) -> Exported:
    """Write `model` to `path` and try it there on `images` (n, …), inputs as the network takes them.

    Raises `ExportError` where the file does not compute what the network does; nothing is written then.
    """
    with replacing(path) as temporary:
        form.write(model, temporary, images[:2])
        if verify:
            check(model, form, temporary, images)
    size = path.stat().st_size
    count = sum(weight.codes.numel() for weight in model.weights.values())
    floats = sum(t.numel() * t.element_size() for n, t in model.module.state_dict().items() if n not in model.weights)
    return Exported(size, 8 * (size - floats) / max(1, count), len(images) if verify else 0)


@torch.no_grad()
def check(model: QuantizedModel, form: Format, path: Path, images: Tensor) -> None:
    """Raise `ExportError` unless the file has the weights bit for bit, and outputs that differ from the network's by
    rounding and agree on the likeliest class of every image."""
    opened = form.open(path, model)
    for name, weight in model.weights.items():
        if not torch.equal(opened.weights[name], weight.dequantize()):
            wrong = int((opened.weights[name] != weight.dequantize()).sum())
            raise ExportError(f"the exported file differs in {wrong} of {weight.codes.numel()} weights of {name}")
    for start in range(0, len(images), SAMPLES):
        batch = images[start : start + SAMPLES]
        expected, found = model.module(batch), opened.forward(batch)
        difference = (found - expected).abs().flatten(1).amax(1)
        image = int(difference.argmax())
        if not bool(difference[image] <= TOLERANCE * expected.abs().max()):
            raise ExportError(
                f"the exported file differs from the network by {float(difference[image]):.3g} on image "
                f"{start + image}, where outputs are up to {float(expected.abs().max()):.3g}"
            )
        apart = (found.argmax(1) != expected.argmax(1)).flatten().nonzero().flatten()
        if len(apart):
            raise ExportError(f"the exported file sees another class than the network on image {start + int(apart[0])}")


def sample_images(model: QuantizedModel, config: DataConfig, count: int = SAMPLES) -> Tensor:
    """Some of the images that `model` was calibrated on, as it takes them; noise where they are not to be found."""
    preprocessing = model.preprocessing
    if preprocessing is None:
        raise UsageError("the checkpoint does not say what its images look like: expected one of 'ldnq quantize'")
    try:
        family = resolve_dataset(config.dataset, model.provenance.get("dataset", ""), model.model)
        train = load_data(config, family).train
        samples = min(model.provenance.get("calibration_samples") or count, len(train))
        drawn = draw(train, family.name, CalibrationConfig(samples=samples, seed=model.provenance.get("seed", 0)))
        images, _ = in_memory(Prepared(train, preprocessing, drawn.indices[:count]))
    except (DataError, UsageError) as error:
        if config.data_root:
            raise
        log.warning("the exported file is checked on noise: %s", error)
        size = preprocessing.image_size
        images = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    return preprocessing.normalize(images)
