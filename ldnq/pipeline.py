"""From a configuration to a quantized network: the only place that knows every part."""

import copy
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ldnq
from ldnq import runtime
from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages, CalibrationSet, load_or_draw
from ldnq.codebook import Codebook
from ldnq.config import RecipeConfig, RunConfig
from ldnq.data import Data, load_data, resolve_dataset, usual_root
from ldnq.datasets import DatasetFamily, datasets
from ldnq.datasets.images import Prepared, in_memory
from ldnq.errors import DataError, NetworkError, keeping
from ldnq.evaluation import Accuracy
from ldnq.formats import h5
from ldnq.measurement import measure
from ldnq.network import Network, find_family, load_network
from ldnq.presets import fill_in, stages
from ldnq.progress import headline
from ldnq.quantized import QuantizationState, QuantizedModel
from ldnq.runs import RunFolder, default_folder
from ldnq.stages import Stage
from ldnq.synthesis import Synthesis

log = logging.getLogger(__name__)

# Of the calibration images, where whole networks learn from the rest.
HELD_OUT = 0.1


@dataclass(frozen=True)
class RunResult:
    """What a run made, the folder it is kept in, and how good the `teacher` is."""

    model: QuantizedModel
    metrics: dict[str, Any]
    folder: Path
    teacher: Accuracy | None


def settle(config: RunConfig) -> RunConfig:
    """`config` with the name of the dataset and every option of the preset, as a run's folder keeps it."""
    usual = find_family(config.network.model).default_dataset
    dataset = resolve_dataset(config.data.dataset, usual, config.network.model)
    return replace(config, data=replace(config.data, dataset=dataset.name), recipe=fill_in(config.recipe))


def run(config: RunConfig, output: Path | None = None, teacher: Accuracy | None = None) -> RunResult:
    """Load, draw, quantize, evaluate and save as `config` says, into `output` or a new folder of `results/`.

    `teacher` is the accuracy of the float network where an earlier run has measured it.
    """
    started = time.perf_counter()
    config = settle(config)
    dataset = datasets.get(str(config.data.dataset))
    fabric = runtime.start(config.runtime)
    data = _load_data(config, dataset)
    network = load_network(config.network, config.data, dataset, data.num_classes)
    calibration = load_or_draw(data.train, dataset.name, config.calibration)[0] if data.train else None
    folder = RunFolder.create(output or default_folder(config.network.file_name, dataset.name, config.recipe.kbits))
    folder.write_config(config)
    headline(f"{config.network.model} on {dataset.name}")
    log.info("levels: %s (%d values)", Codebook.power_of_two(config.recipe.kbits), config.recipe.kbits)

    network.module.to(fabric.device).requires_grad_(False)
    if teacher is None:
        teacher = measure(network.module, data, network.preprocessing, config.runtime, fabric, "evaluating the network")
    _check_teacher(teacher, network)
    begun = time.perf_counter()
    mixed_precision = runtime.mixes_in_training(fabric.device.type, config.runtime)
    images = _calibration_images(calibration, data, network, config, fabric.device, mixed_precision)
    with runtime.autocast(fabric, config.runtime), keeping(folder.kept):
        state = apply_recipe(network.module, images, config.recipe, config.calibration.seed, mixed_precision)
    quantizing = time.perf_counter() - begun
    headline("evaluating and saving")
    with keeping(folder.kept):
        accuracy = measure(state.student, data, network.preprocessing, config.runtime, fabric, "evaluating the result")

    metrics = _metrics(config, dataset, calibration, teacher, accuracy)
    model = QuantizedModel(
        module=state.student.cpu(),
        weights=state.weights,
        model=network.model,
        model_args=network.model_args,
        preprocessing=network.preprocessing,
        class_names=data.class_names,
        provenance={"ldnq": ldnq.__version__, "source": network.source, "left_float": _left_float(state)} | metrics,
        folded=state.folded,
        grids=state.grids,
    )
    folder.write_layers(state)
    sizes = h5.save(model, folder.model)
    metrics |= {
        "float_bytes": model.float_bytes,
        "packed_bytes": sizes["total"],
        "packed_parts": sizes,
        "bits_per_weight": model.bits_per_weight,
        "skipped_layers": len(state.skipped),
        "quantizing_seconds": quantizing,
        "seconds": time.perf_counter() - started,
        "environment": runtime.environment(),
    }
    folder.write_metrics(metrics)
    return RunResult(model, metrics, folder.path, teacher)


def quantize(
    module: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    kbits: int = 3,
    *,
    batch_size: int = 128,
    seed: int = 0,
    **options: Any,
) -> QuantizedModel:
    """A quantized copy of any network, from a small sample of its inputs; `module` itself is left as it is.

    `batches` yields inputs as the network takes them (n, …), or tuples that start with them, such as a `DataLoader`
    gives; `batch_size` bounds the memory of passes that do not train; `options` are the other fields of
    `RecipeConfig`, such as `scale="channel"` or `training=False`. Raises `NetworkError` where the network cannot run.
    """
    inputs = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches]
    if not inputs:
        raise DataError("expected at least one batch of inputs to calibrate on, got none")
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    images = CalibrationImages(torch.cat(inputs), lambda batch: batch, None, batch_size, device)
    recipe = RecipeConfig(kbits=kbits, **options)
    state = apply_recipe(module, images, fill_in(recipe), seed)
    provenance = {"ldnq": ldnq.__version__, "kbits": kbits, "left_float": _left_float(state)}
    return QuantizedModel(state.student, state.weights, provenance=provenance, folded=state.folded, grids=state.grids)


def apply_recipe(
    module: nn.Module, images: CalibrationImages, recipe: RecipeConfig, seed: int, mixed_precision: bool = False
) -> QuantizationState:
    """Run the stages of a filled-in `recipe` on a copy of `module`, which is left as it is."""
    generator = torch.Generator().manual_seed(seed)
    if recipe.training and (recipe.block_steps or recipe.distillation_steps):
        images = images.set_apart(HELD_OUT, generator)
    return apply_stages(module, images, stages(recipe, mixed_precision), generator)


def apply_stages(
    module: nn.Module, images: CalibrationImages, chosen: Iterable[Stage], generator: torch.Generator
) -> QuantizationState:
    """Run the `chosen` stages on a copy of `module`, which is left as it is."""
    teacher = _copy(module, torch.channels_last).requires_grad_(False)
    state = QuantizationState(_copy(teacher, torch.channels_last).requires_grad_(True), teacher)
    chosen = list(chosen)
    for number, step in enumerate(chosen, 1):
        headline(f"stage {number} of {len(chosen)}: {type(step).__module__.rpartition('.')[2]}")
        state = step(state, images, generator)
    # Another memory layout rounds differently: what is measured and saved has the one that it will be loaded in.
    state.student = _copy(state.student, torch.contiguous_format).requires_grad_(False)
    return state


def _copy(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    try:
        module = copy.deepcopy(module).eval()
    except RuntimeError as error:  # weights that a hook computes are no leaves of the graph
        raise NetworkError(
            "the network cannot be copied: remove pruning and weight normalization first, for example by "
            "torch.nn.utils.prune.remove or remove_weight_norm"
        ) from error
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)
    return module


def _check_teacher(accuracy: Accuracy | None, network: Network) -> None:
    if accuracy is None:
        log.warning("no labelled test images: quantizing, but accuracy is not measured")
    elif accuracy.near_chance:
        raise NetworkError(
            f"the float network is right on {accuracy.top1:.1f}% of the test images, near chance: checkpoint "
            f"({network.source}), preprocessing or the order of the classes do not match"
        )


def _load_data(config: RunConfig, dataset: DatasetFamily) -> Data:
    wanted = config.calibration.calibration_data or config.data.data_root or dataset.embedded
    if not wanted and not usual_root(dataset).is_dir():
        return Data(dataset, None, None)
    return load_data(config.data, dataset, training=config.calibration.calibration_data)


def _calibration_images(
    calibration: CalibrationSet | None,
    data: Data,
    network: Network,
    config: RunConfig,
    device: torch.device,
    mixed_precision: bool,
) -> CalibrationImages:
    """The images drawn, and those that are synthesized."""
    preprocessing, options = network.preprocessing, config.calibration
    images = torch.empty(0, 3, preprocessing.image_size, preprocessing.image_size, dtype=torch.uint8)
    if calibration:
        prepared = Prepared(data.training, preprocessing, calibration.indices)
        images, _ = in_memory(prepared, config.runtime.workers)
    augmentation = Augmentation(preprocessing.image_size, data.family.flip)
    found = CalibrationImages(images, preprocessing.normalize, augmentation, config.runtime.batch_size, device)
    if not options.synthesize:
        return found
    synthesis = Synthesis(options.synthesize, mixed_precision=mixed_precision)
    return synthesis(network.module, found, torch.Generator().manual_seed(options.seed))


def _left_float(state: QuantizationState) -> dict[str, str]:
    """Layers that were not quantized, and why."""
    return {layer.name: layer.reason for layer in state.skipped}


def _metrics(
    config: RunConfig,
    dataset: DatasetFamily,
    calibration: CalibrationSet | None,
    teacher: Accuracy | None,
    quantized: Accuracy | None,
) -> dict[str, Any]:
    recipe = config.recipe
    return {
        "model": config.network.model,
        "dataset": dataset.name,
        "method": recipe.method,
        "preset": recipe.preset,
        "solver": recipe.solver,
        "kbits": recipe.kbits,
        "levels": list(Codebook.power_of_two(recipe.kbits).levels),
        "scale": recipe.scale,
        "abits": recipe.abits,
        "training": recipe.training,
        "seed": config.calibration.seed,
        "calibration_samples": len(calibration.indices) if calibration else 0,
        "synthesized_samples": config.calibration.synthesize,
        "eval_samples": teacher.samples if teacher else 0,
        "teacher_top1": teacher and teacher.top1,
        "teacher_top5": teacher and teacher.top5,
        "quantized_top1": quantized and quantized.top1,
        "quantized_top5": quantized and quantized.top5,
        "top1_drop": teacher and quantized and teacher.top1 - quantized.top1,
    }
