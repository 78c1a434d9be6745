"""From a configuration to a quantized network: the only place that knows every part."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ldnq
from ldnq import ranks, results, runtime, tensorboard
from ldnq.allocation import settle_levels
from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.config import AUTO, RecipeConfig, RunConfig, RuntimeConfig
from ldnq.errors import DataError, keeping
from ldnq.evaluation import Accuracy
from ldnq.journal import FileJournal, digest
from ldnq.measurement import measure, top1_by_width
from ldnq.preparation import Preparation, check_teacher, prepare
from ldnq.presets import fill_in
from ldnq.progress import headline
from ldnq.quantized import Journal, QuantizationState, QuantizedModel
from ldnq.recipe import apply_nested, apply_recipe, joined
from ldnq.report import write_report
from ldnq.results import RunResult, left_float
from ldnq.runs import RunFolder, default_folder
from ldnq.sensitivity import Sensitivity, write_table

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    output: Path | None = None,
    command: str | None = None,
    curves: bool = False,
    teacher: Accuracy | None = None,
) -> RunResult:
    """Load, draw, quantize, evaluate and save as `config` says, into `output` or a new folder of `results/`.

    The report shows the `command` that asked for it, `curves` of training are written for TensorBoard, `teacher` is the
    accuracy of the float network where an earlier run has measured it. A run into `output` that did not end goes on
    after its last finished layer.
    """
    with runtime.together(config.runtime):
        return _run(config, output, command, curves, teacher)


def _run(
    config: RunConfig, output: Path | None, command: str | None, curves: bool, teacher: Accuracy | None
) -> RunResult:
    started = time.perf_counter()
    prepared = prepare(config)
    name = (config.network.file_name, prepared.data.family.name, f"k{'-'.join(map(str, _several(config.recipe)))}")
    folder = ranks.agreed(lambda: RunFolder.create(output or default_folder(*name)))
    headline(f"{config.network.model} on {prepared.data.family.name}")
    with folder.alone(), tensorboard.writing(folder.path / "tensorboard" if curves else None), keeping(folder.kept):
        if not folder.begun:  # else the run that it belongs to has written its own
            folder.write_config(prepared.config.to_dict())
        teacher = teacher or _measure_teacher(prepared)
        model, metrics = _made(prepared, folder, teacher)
        metrics |= {"command": command, "seconds": time.perf_counter() - started, "environment": runtime.environment()}
        ranks.agreed(lambda: _finish(folder, metrics))
    return RunResult(model, metrics, folder.path, teacher)


def _finish(folder: RunFolder, metrics: dict[str, Any]) -> None:
    folder.write_metrics(metrics)
    write_report(folder.path)
    folder.forget()


def _measure_teacher(prepared: Preparation) -> Accuracy | None:
    """Accuracy of the float network; raises `NetworkError` where it only guesses."""
    network, config = prepared.network, prepared.config.runtime
    accuracy = measure(
        network.module, prepared.data, network.preprocessing, config, prepared.fabric, "evaluating the network"
    )
    if accuracy is None:
        log.warning("no labelled test images: quantizing, but accuracy is not measured")
    else:
        check_teacher(accuracy, network, "test")
    return accuracy


def _made(prepared: Preparation, folder: RunFolder, teacher: Accuracy | None) -> tuple[QuantizedModel, dict[str, Any]]:
    config, fabric, data, network = prepared.config, prepared.fabric, prepared.data, prepared.network
    _log_levels(config.recipe)
    begun = time.perf_counter()
    circumstances = _circumstances(prepared)
    images, seed = prepared.images(), config.calibration.seed
    with runtime.autocast(fabric, config.runtime):
        state, sensitivities = _quantized(
            network.module, images, config.recipe, seed, prepared.mixed_precision,
            lambda kbits: FileJournal(folder.journal_of(kbits), circumstances),
        )  # fmt: skip
    quantizing = time.perf_counter() - begun
    headline("evaluating and saving")
    weigh = partial(measure, data=data, preprocessing=network.preprocessing, config=config.runtime, fabric=fabric)
    accuracy = weigh(state.student, description="evaluating the result")

    metrics = _metrics(prepared, state, teacher, accuracy)
    if state.precisions and accuracy:
        metrics["top1_at"] = top1_by_width(state.student, state.precisions, accuracy, weigh)
    model = _model(prepared, state, metrics)
    if sensitivities:
        write_table(sensitivities, folder.path)
    saved = ranks.agreed(
        lambda: results.save(folder, state, model, images, data, network.preprocessing, teacher, accuracy)
    )
    return model, metrics | saved | {"quantizing_seconds": quantizing}


def _model(prepared: Preparation, state: QuantizationState, metrics: dict[str, Any]) -> QuantizedModel:
    """What is saved; the `metrics` known so far become part of its provenance."""
    network = prepared.network
    return QuantizedModel(
        module=state.student.cpu(),
        weights=state.weights,
        model=network.model,
        model_args=network.model_args,
        preprocessing=network.preprocessing,
        class_names=prepared.data.class_names,
        provenance={"ldnq": ldnq.__version__, "source": network.source, "left_float": left_float(state)} | metrics,
        folded=state.folded,
        grids=state.grids,
        precisions=state.precisions,
    )


def _quantized(
    module: nn.Module,
    images: CalibrationImages,
    recipe: RecipeConfig,
    seed: int,
    mixed_precision: bool = False,
    journals: Callable[[int], Journal | None] = lambda kbits: None,
) -> tuple[QuantizationState, list[Sensitivity]]:
    """The state that a filled-in recipe ends in, by either method, and the sensitivities that levels were chosen by."""
    if isinstance(recipe.kbits, tuple):
        nested = apply_nested(module, images, recipe, recipe.kbits, seed, mixed_precision, journals)
        return joined(nested), []
    settled, sensitivities = settle_levels(module, images, recipe, seed)
    return apply_recipe(module, images, settled, seed, mixed_precision, journals(0)), sensitivities


def _several(recipe: RecipeConfig) -> tuple[int | str, ...]:
    return recipe.kbits if isinstance(recipe.kbits, tuple) else (recipe.kbits,)


def quantize(
    module: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    kbits: int | str | tuple[int, ...] = 3,
    *,
    batch_size: int = 128,
    max_memory: float | None = None,
    seed: int = 0,
    **options: Any,
) -> QuantizedModel:
    """A quantized copy of any network, from a small sample of its inputs; `module` itself is left as it is.

    `batches` yields inputs as the network takes them (n, …), or tuples that start with them, such as a `DataLoader`
    gives; `batch_size` bounds the memory of passes that do not train, `max_memory`, in GiB, that of all; `options` are
    the other fields of `RecipeConfig`, such as `scale="channel"`, `training=False`, `kbits_for={"fc": 9}`, or
    `target_bits=2.0` for kbits "auto". Raises `NetworkError` where the network cannot run.
    """
    RuntimeConfig(batch_size=batch_size, max_memory=max_memory)  # raises what the command would
    inputs = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches]
    if not inputs:
        raise DataError("expected at least one batch of inputs to calibrate on, got none")
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    images = CalibrationImages(torch.cat(inputs), lambda batch: batch, None, batch_size, device, max_memory=max_memory)
    state, _ = _quantized(module, images, fill_in(RecipeConfig(kbits=kbits, **options)), seed)
    return QuantizedModel(
        state.student,
        state.weights,
        provenance={"ldnq": ldnq.__version__, "kbits": kbits, "left_float": left_float(state)},
        folded=state.folded,
        grids=state.grids,
        precisions=state.precisions,
    )


def _circumstances(prepared: Preparation) -> dict[str, Any]:
    """What a run that goes on must have in common with the one that began."""
    calibration = prepared.calibration
    drawn = hashlib.sha256(calibration.indices.astype("<i8").tobytes()).hexdigest() if calibration else ""
    config = prepared.config.to_dict()
    # Where things lie, and what reads them.
    config["data"].pop("data_root"), config["network"].pop("pretrained_dir")
    config["runtime"].pop("workers"), config["runtime"].pop("max_memory")
    return {
        "configuration": config,
        "weights": digest(prepared.network.module),
        "calibration set": f"{calibration.fingerprint} {drawn[:16]}" if calibration else "none",
        "version": {"ldnq": ldnq.__version__, "torch": torch.__version__},
    }


def _log_levels(recipe: RecipeConfig) -> None:
    if isinstance(recipe.kbits, tuple):
        log.info("levels: %s", ", ".join(map(str, recipe.kbits)))
    elif recipe.kbits == AUTO:
        log.info("levels: chosen layer by layer for %g bits a weight", recipe.target_bits)
    else:
        log.info("levels: %s (%d values)", Codebook.power_of_two(int(recipe.kbits)), recipe.kbits)
    for pattern, kbits in recipe.kbits_for.items():
        log.info("levels of %s: %s (%d values)", pattern, Codebook.power_of_two(kbits), kbits)


def _metrics(
    prepared: Preparation, state: QuantizationState, teacher: Accuracy | None, quantized: Accuracy | None
) -> dict[str, Any]:
    config, calibration = prepared.config, prepared.calibration
    recipe = config.recipe
    codebooks = {result.layer.name: state.weights[result.layer.weight_name].codebook for result in state.results}
    mixed = len(set(codebooks.values())) > 1
    return {
        "model": config.network.model,
        "dataset": prepared.data.family.name,
        "method": recipe.method,
        "preset": recipe.preset,
        "solver": recipe.solver,
        "kbits": _several(recipe)[-1],
        "kbits_by_layer": {name: codebook.num_levels for name, codebook in codebooks.items()} if mixed else None,
        "target_bits": recipe.target_bits,
        # Codebooks of fewer levels are part of the largest.
        "levels": list(max(codebooks.values(), key=lambda codebook: codebook.num_levels).levels),
        "scale": recipe.scale,
        "abits": recipe.abits,
        "training": recipe.training,
        "seed": config.calibration.seed,
        "calibration_samples": len(calibration.indices) if calibration else 0,
        "synthesized_samples": config.calibration.synthesize,
    } | results.accuracy_metrics(teacher, quantized)
