"""Accuracy as a user asks for it: of a network or of a checkpoint, on a dataset."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from torch import nn

from ldnq import formats, ranks, runtime
from ldnq.config import RunConfig, RuntimeConfig
from ldnq.data import Data, load_data, resolve_dataset
from ldnq.datasets.images import Prepared, loader
from ldnq.errors import DataError, UsageError
from ldnq.evaluation import Accuracy, evaluate
from ldnq.network import build, decide_preprocessing, find_family, load_network
from ldnq.precisions import Precisions
from ldnq.preprocessing import Preprocessing
from ldnq.progress import track
from ldnq.switching import set_width


def evaluate_network(config: RunConfig) -> dict[str, Any]:
    """Accuracy of the float network that `config` names, as plain values."""
    family = find_family(config.network.model)
    dataset = resolve_dataset(config.data.dataset, family.default_dataset, config.network.model)
    with runtime.together(config.runtime):
        data = load_data(config.data, dataset, training=False)
        network = load_network(config.network, config.data, dataset, data.num_classes)
        return _report(network.module, network.preprocessing, data, config.runtime)


def evaluate_checkpoint(
    path: Path, config: RunConfig, bits: Sequence[int] = (), kbits: Sequence[int] = ()
) -> dict[str, Any]:
    """Accuracy of the quantized network in `path` on its own dataset, or on the one `config` names; of a network of
    several widths those of `bits` or `kbits`, or all, by width as `at`, and that of the widest of them."""
    contents = formats.read(path)
    widths = _widths(contents.precisions, bits, kbits, path)
    dataset = resolve_dataset(config.data.dataset, contents.provenance.get("dataset", ""), str(path))
    data = load_data(config.data, dataset, training=False)
    factory = config.network.model
    module = build(factory, config.network.model_args or contents.model_args) if factory else None
    model = contents.assemble(path, module)
    card = {"preprocessing": contents.preprocessing.to_dict()} if contents.preprocessing else {}
    preprocessing = decide_preprocessing(find_family(factory or contents.model), config.data, dataset, card)
    found = {}
    with runtime.together(config.runtime):
        for width in widths:
            set_width(model.module, width)
            found[width] = _report(model.module, preprocessing, data, config.runtime)
        if not found:
            return _report(model.module, preprocessing, data, config.runtime)
    at = {str(width): {name: accuracy[name] for name in ("top1", "top5")} for width, accuracy in found.items()}
    return found[max(found)] | {"at": at}


def _widths(precisions: Precisions | None, bits: Sequence[int], kbits: Sequence[int], path: Path) -> list[int]:
    """Those asked for, else all; raises `UsageError` where the network does not have them."""
    if precisions is None:
        if bits or kbits:
            raise UsageError(f"expected a network of several widths with --bits or --kbits, found one of one in {path}")
        return []
    asked = [precisions.check(width, unit) for unit, some in (("bits", bits), ("kbits", kbits)) for width in some]
    return asked or list(precisions.widths)


def measure(
    module: nn.Module, data: Data, preprocessing: Preprocessing, config: RuntimeConfig, fabric: Fabric, description: str
) -> Accuracy | None:
    """Accuracy on the test images; None where there are none."""
    if data.test is None:
        return None
    size = config.images_at_once(preprocessing.image_size)
    count = len(data.test)
    batches = np.split(np.arange(count), range(size, count, size))
    own = np.concatenate([*ranks.mine(batches), np.arange(0)])
    read = loader(Prepared(data.test, preprocessing, own), size, config.workers)
    found = evaluate(
        module, track(read, description), preprocessing, fabric, data.num_classes or 0, data.family.class_subset
    )
    return found.of_all(own, count)


def top1_by_width(
    module: nn.Module, precisions: Precisions, widest: Accuracy, weigh: Callable[..., Accuracy | None]
) -> dict[str, float]:
    """Top-1 at every width in percent, of the `widest` as it is known, of all others by `weigh`. Leaves `module` at the
    widest."""
    found: dict[str, float] = {}
    for width in precisions.widths[:-1]:
        set_width(module, width)
        accuracy = weigh(module, description=f"evaluating at {width} {precisions.unit}")
        found |= {str(width): accuracy.top1} if accuracy else {}
    set_width(module, precisions.widths[-1])
    return found | {str(precisions.widths[-1]): widest.top1}


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
