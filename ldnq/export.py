"""From a checkpoint to a file that another runtime runs, checked in that runtime."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ldnq import formats
from ldnq.calibration import draw
from ldnq.config import CalibrationConfig, DataConfig, NetworkConfig
from ldnq.data import load_data, resolve_dataset
from ldnq.datasets.images import Prepared, in_memory
from ldnq.errors import DataError, ExportError, UsageError
from ldnq.files import replacing
from ldnq.folding import fold_batch_norms
from ldnq.formats import Format
from ldnq.network import build
from ldnq.progress import headline, track
from ldnq.quantized import QuantizedModel

log = logging.getLogger(__name__)

# Images that an exported network is tried on.
SAMPLES = 128
# Of the largest output: another order of summation in float32, through all layers.
TOLERANCE = 1e-4
# The same where activations are rounded: a value near half a step goes up here and down there.
GRID_TOLERANCE = 0.05
BATCH = 64


@dataclass(frozen=True)
class Exported:
    """What was written: `bytes` of the file, `bits_per_weight` of quantized weights, all else but float tensors counted
    in, on how many images it was `checked`, and on how many it sees the class that the network sees."""

    bytes: int
    bits_per_weight: float
    checked: int
    agreed: int


def export(model: QuantizedModel, path: Path, form: Format, images: Tensor, verify: bool = True) -> Exported:
    """Write `model` to `path` and try it there on `images` (n, …), inputs as the network takes them.

    Raises `ExportError` where the file does not compute what the network does; nothing is written then.
    """
    with replacing(path) as temporary:
        # Of a single image a tracer would take the size of the batch for a constant.
        headline(f"writing {path}")
        form.write(model, temporary, torch.cat([images, images])[:2])
        agreed = check(model, form, temporary, images) if verify else 0
    size = path.stat().st_size
    count = sum(weight.codes.numel() for weight in model.weights.values())
    floats = sum(t.numel() * t.element_size() for n, t in model.module.state_dict().items() if n not in model.weights)
    return Exported(size, 8 * (size - floats) / max(1, count), len(images) if verify else 0, agreed)


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    form: Format,
    data: DataConfig,
    own: NetworkConfig | None = None,
    *,
    fold_batchnorm: bool = False,
    verify: bool = True,
    bits: int | None = None,
    kbits: int | None = None,
) -> tuple[QuantizedModel, Exported]:
    """Write the network in `checkpoint`, or in a run's folder, to `output` and try it there on images of `data`.

    `own` names the network where the file does not. Of one of several widths that of `bits` or `kbits` is written, or
    the widest.
    Returns it as it was written.
    """
    path = checkpoint / "model.h5" if checkpoint.is_dir() else checkpoint
    if not output.name or (output.exists() and not output.is_file()):
        raise UsageError(f"expected a file for --output, got {output}")
    if output.resolve() == path.resolve():
        raise UsageError(f"expected --output, another file than {path}, which is read")
    contents = formats.read(path)
    network = contents.assemble(path, build(own.model, own.model_args or contents.model_args) if own else None)
    network = network.widest() if bits is None and kbits is None else network.at(bits, kbits)
    images = sample_images(network, data)
    if fold_batchnorm:
        network = folded(network, images)
    return network, export(network, output, form, images, verify)


@torch.no_grad()
def check(model: QuantizedModel, form: Format, path: Path, images: Tensor) -> int:
    """On how many images the file and the network see the same class.

    Raises `ExportError` unless the file has the weights bit for bit and outputs that differ from the network's by
    rounding; and agrees on every class, where activations are not rounded too: steps of their grids add up.
    """
    headline("checking the file")
    opened = form.open(path, model)
    for name, weight in model.weights.items():
        wrong = int((opened.weights[name] != weight.dequantize()).sum())
        if wrong:
            raise ExportError(f"the exported file differs in {wrong} of {weight.codes.numel()} weights of {name}")
    batches = images.split(BATCH)
    expected = torch.cat([model.module(batch) for batch in track(batches, "running the network")])
    found = torch.cat([opened.forward(batch) for batch in track(batches, "running the file")])
    written = torch.cat([opened.as_written(batch) for batch in batches]) if opened.as_written else found
    largest, difference = float(expected.abs().max()), (written - expected).abs().flatten(1).amax(1)
    # NaN is no small difference.
    if not bool((difference <= (GRID_TOLERANCE if model.rounds_activations else TOLERANCE) * largest).all()):
        image = int(difference.argmax())
        raise ExportError(
            f"the exported file differs from the network by {float(difference[image]):.3g} on image {image}, where "
            f"outputs are up to {largest:.3g}"
        )
    same = (found.argmax(1) == expected.argmax(1)).view(len(images), -1).all(1)
    if not model.rounds_activations and not bool(same.all()):
        raise ExportError(f"the exported file sees another class than the network on image {int(same.int().argmin())}")
    return int(same.sum())


def folded(model: QuantizedModel, images: Tensor) -> QuantizedModel:
    """`model` with its batch norms folded into the layers before them; `images` (n, …) are to try it on."""
    module, weights = fold_batch_norms(model.module, model.weights, images)
    return replace(model, module=module, weights=weights, folded=True)


def sample_images(model: QuantizedModel, config: DataConfig, count: int = SAMPLES) -> Tensor:
    """Training images as `model` takes them, of a plain draw the ones that it was calibrated on; noise where there are
    none. Raises what is wrong with a dataset that `config` names."""
    preprocessing = model.preprocessing
    if preprocessing is None:
        if not config.image_size:
            raise UsageError("the checkpoint does not say what its images look like: give --image-size")
        return torch.randn(count, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    try:
        family = resolve_dataset(config.dataset, str(model.provenance.get("dataset", "")), model.model)
        train = load_data(config, family).training
        samples = min(_number(model, "calibration_samples") or count, len(train))
        drawn = draw(train, family.name, CalibrationConfig(samples=samples, seed=_number(model, "seed")))
        images, _ = in_memory(Prepared(train, preprocessing, drawn.indices[:count]))
    except (DataError, UsageError) as error:
        if config.data_root or config.dataset:
            raise
        log.warning("the exported file is checked on noise: %s", error)
        size = preprocessing.image_size
        images = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    return preprocessing.normalize(images)


def _number(model: QuantizedModel, name: str) -> int:
    value = model.provenance.get(name)
    return value if isinstance(value, int) and value > 0 else 0
