"""The sensitivities of a network as a run of its own: measured, tabled, drawn."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ldnq import runtime
from ldnq.calibration import CalibrationImages
from ldnq.config import RunConfig
from ldnq.errors import UsageError
from ldnq.evaluation import evaluate, select
from ldnq.extras import require
from ldnq.files import replacing
from ldnq.preparation import Preparation, check_teacher, prepare, start
from ldnq.presets import layerwise
from ldnq.runs import RunFolder, default_folder
from ldnq.sensitivity import Labels, Sensitivity, measure_sensitivities, write_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """The sensitivities of all layers, layer by layer, with what is told of them, and the folder that holds both."""

    found: list[Sensitivity]
    metrics: dict[str, Any]
    folder: Path


def survey(config: RunConfig, choices: Sequence[int], output: Path | None = None) -> Survey:
    """Measure what each layer alone does at each of the numbers of levels in `choices`, with the network, images and
    layer-wise stage of `config`, into `output` or a new folder of `results/`."""
    started = time.perf_counter()
    prepared = prepare(config)
    config, recipe, dataset = prepared.config, prepared.config.recipe, prepared.data.family.name
    folder = RunFolder.create(output or default_folder(config.network.model, dataset, "sensitivity"))
    folder.write_config(config.to_dict())
    images = prepared.images()
    labels, teacher_top1 = _labels(prepared, images)
    stage = replace(layerwise(recipe), cascade=None)
    generator = torch.Generator().manual_seed(config.calibration.seed)
    found: list[Sensitivity] = []
    with runtime.autocast(prepared.fabric, config.runtime):
        for trials in measure_sensitivities(
            start(prepared.network.module), images, stage, lambda layer: choices, generator, labels
        ):
            found += trials
            # What has been measured is kept, whatever happens to the rest.
            write_table(found, folder.path)
    metrics = {
        "model": config.network.model,
        "dataset": dataset,
        "preset": recipe.preset,
        "solver": recipe.solver,
        "scale": recipe.scale,
        "kbits": list(choices),
        "seed": config.calibration.seed,
        "calibration_samples": len(prepared.calibration.indices) if prepared.calibration else 0,
        "synthesized_samples": config.calibration.synthesize,
        "teacher_top1": teacher_top1,
        "seconds": time.perf_counter() - started,
        "environment": runtime.environment(),
    }
    _plot(found, folder.path / "sensitivity.svg", f"{config.network.model} on {dataset}")
    folder.write_metrics(metrics)
    return Survey(found, metrics, folder.path)


def _labels(prepared: Preparation, images: CalibrationImages) -> tuple[Labels | None, float | None]:
    """The labels of the images drawn where they have some, and the float network's top-1 on them."""
    data, calibration = prepared.data, prepared.calibration
    if calibration is None or not data.training.labelled:
        return None, None
    labels = torch.from_numpy(data.training.labels[calibration.indices])
    preprocessing, size = prepared.network.preprocessing, images.batch_size
    pairs = zip(images.images[: len(labels)].split(size), labels.split(size))
    subset = data.family.class_subset
    accuracy = evaluate(prepared.network.module, pairs, preprocessing, prepared.fabric, data.num_classes or 0, subset)
    check_teacher(accuracy, prepared.network, "calibration")
    return Labels(labels, lambda outputs: select(outputs, data.num_classes or 0, subset)), accuracy.top1


def _plot(found: Sequence[Sensitivity], path: Path, title: str) -> None:
    """Divergence and accuracy by layer, a line for each number of levels; a remark where matplotlib is missing."""
    try:
        figures = require("matplotlib.figure", "plots")
    except UsageError as error:
        log.warning("no plot is drawn: %s", error)
        return
    measures = {"divergence": "divergence, nats an image"}
    if found[0].top1 is not None:
        measures["top1"] = "top-1, %"
    elif found[0].agreement is not None:
        measures["agreement"] = "class of the float network, %"
    names = list(dict.fromkeys(one.layer.name for one in found))
    figure = figures.Figure(figsize=(max(5.0, 2 + 0.25 * len(names)), 1 + 2.7 * len(measures)), layout="constrained")
    panels = figure.subplots(len(measures), sharex=True, squeeze=False).flat
    for panel, (measure, label) in zip(panels, measures.items()):
        for num_levels in dict.fromkeys(one.num_levels for one in found):
            values = [getattr(one, measure) for one in found if one.num_levels == num_levels]
            panel.plot(range(len(names)), values, marker="o", markersize=4, label=f"{num_levels} levels")
        panel.set_ylabel(label, fontsize=9)
        panel.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_yscale("log", nonpositive="mask")
    figure.axes[0].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"One layer quantized, the others float: {title}", fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
