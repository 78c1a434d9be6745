"""Accuracy as a user asks for it: of a network or of a checkpoint, on a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from ldnq import formats, runtime
from ldnq.config import RunConfig, RuntimeConfig
from ldnq.data import Data, load_data, resolve_dataset
from ldnq.datasets.images import Prepared, loader
from ldnq.errors import DataError, UsageError
from ldnq.evaluation import Accuracy, evaluate
from ldnq.network import build, decide_preprocessing, find_family, load_network
from ldnq.preprocessing import Preprocessing
from ldnq.progress import track


def evaluate_network(config: RunConfig) -> dict[str, Any]:
    """Accuracy of the float network that `config` names, as plain values."""
    family = find_family(config.network.model)
    dataset = resolve_dataset(config.data.dataset, family.default_dataset, config.network.model)
    data = load_data(config.data, dataset, training=False)
    network = load_network(config.network, config.data, dataset, data.num_classes)
    return _report(network.module, network.preprocessing, data, config.runtime)


def evaluate_checkpoint(path: Path, config: RunConfig, bits: Sequence[int] = ()) -> dict[str, Any]:
    """Accuracy of the quantized network in `path` on its own dataset, or on the one `config` names; of a network of
    several widths also `at` those of `bits`, or at each."""
    contents = formats.read(path)
    if bits and not contents.precisions:
        raise UsageError(f"expected --bits with a network of several widths, found one of one in {path}")
    widths = (
        [contents.precisions.check(width) for width in bits or contents.precisions.widths]
        if contents.precisions
        else []
    )
    dataset = resolve_dataset(config.data.dataset, contents.provenance.get("dataset", ""), str(path))
    data = load_data(config.data, dataset, training=False)
    factory = config.network.model
    module = build(factory, config.network.model_args or contents.model_args) if factory else None
    model = contents.assemble(path, module)
    card = {"preprocessing": contents.preprocessing.to_dict()} if contents.preprocessing else {}
    preprocessing = decide_preprocessing(find_family(factory or contents.model), config.data, dataset, card)
    found = {}
    for width in widths:
        model.set_bits(width)
        found[str(width)] = _report(model.module, preprocessing, data, config.runtime)
    if found:
        widest = found[str(max(widths))]
        return widest | {
            "at": {width: {name: accuracy[name] for name in ("top1", "top5")} for width, accuracy in found.items()}
        }
    return _report(model.module, preprocessing, data, config.runtime)


def measure(
    module: nn.Module, data: Data, preprocessing: Preprocessing, config: RuntimeConfig, fabric: Fabric, description: str
) -> Accuracy | None:
    """Accuracy on the test images; None where there are none."""
    if data.test is None:
        return None
    batches = loader(
        Prepared(data.test, preprocessing), config.images_at_once(preprocessing.image_size), config.workers
    )
    return evaluate(
        module, track(batches, description), preprocessing, fabric, data.num_classes or 0, data.family.class_subset
    )


def _report(module: nn.Module, preprocessing: Preprocessing, data: Data, config: RuntimeConfig) -> dict[str, Any]:
    fabric = runtime.start(config)
    accuracy = measure(module.to(fabric.device), data, preprocessing, config, fabric, "evaluating")
    if accuracy is None:
        raise DataError(f"expected labelled test images of {data.family.name} to measure accuracy on, found none")
    return {
        "dataset": data.family.name,
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "samples": accuracy.samples,
    }
