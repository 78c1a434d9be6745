"""From a configuration to a quantized network: the only place that knows every part."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ldnq
from ldnq import results, runtime, tensorboard
from ldnq.allocation import settle_levels
from ldnq.calibration import CalibrationImages
from ldnq.codebook import Codebook
from ldnq.config import AUTO, RecipeConfig, RunConfig
from ldnq.errors import DataError, UsageError, keeping
from ldnq.evaluation import Accuracy
from ldnq.journal import FileJournal, digest
from ldnq.measurement import measure
from ldnq.nesting import Nest
from ldnq.preparation import Preparation, check_teacher, copied, prepare, start
from ldnq.presets import fill_in, stages
from ldnq.progress import headline
from ldnq.quantized import Journal, QuantizationState, QuantizedModel, QuantizedWeight
from ldnq.report import write_report
from ldnq.results import RunResult, left_float
from ldnq.runs import RunFolder, default_folder
from ldnq.sensitivity import write_table
from ldnq.stages import Stage

log = logging.getLogger(__name__)

# Of the calibration images, where whole networks learn from the rest.
HELD_OUT = 0.1


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
    started = time.perf_counter()
    prepared = prepare(config)
    name = (config.network.file_name, prepared.data.family.name, f"k{config.recipe.kbits}")
    folder = RunFolder.create(output or default_folder(*name))
    headline(f"{config.network.model} on {prepared.data.family.name}")
    with folder.alone(), tensorboard.writing(folder.path / "tensorboard" if curves else None), keeping(folder.kept):
        if not folder.journal.exists():  # else the run that it belongs to has written its own
            folder.write_config(prepared.config.to_dict())
        teacher = teacher or _measure_teacher(prepared)
        model, metrics = _run(prepared, folder, teacher)
        metrics |= {"command": command, "seconds": time.perf_counter() - started, "environment": runtime.environment()}
        folder.write_metrics(metrics)
        write_report(folder.path)
        folder.journal.unlink(missing_ok=True)
    return RunResult(model, metrics, folder.path, teacher)


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


def _run(prepared: Preparation, folder: RunFolder, teacher: Accuracy | None) -> tuple[QuantizedModel, dict[str, Any]]:
    config, fabric, data, network = prepared.config, prepared.fabric, prepared.data, prepared.network
    _log_levels(config.recipe)
    begun = time.perf_counter()
    journal = FileJournal(folder.journal, _circumstances(prepared))
    images, seed = prepared.images(), config.calibration.seed
    with runtime.autocast(fabric, config.runtime):
        recipe, sensitivities = settle_levels(network.module, images, config.recipe, seed)
        state = apply_recipe(network.module, images, recipe, seed, prepared.mixed_precision, journal)
    quantizing = time.perf_counter() - begun
    headline("evaluating and saving")
    accuracy = measure(state.student, data, network.preprocessing, config.runtime, fabric, "evaluating the result")

    metrics = _metrics(prepared, state, teacher, accuracy)
    model = _model(prepared, state, metrics)
    if sensitivities:
        write_table(sensitivities, folder.path)
    saved = results.save(folder, state, model, images, data, network.preprocessing, teacher, accuracy)
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
    )


def quantize(
    module: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    kbits: int | str = 3,
    *,
    batch_size: int = 128,
    seed: int = 0,
    **options: Any,
) -> QuantizedModel:
    """A quantized copy of any network, from a small sample of its inputs; `module` itself is left as it is.

    `batches` yields inputs as the network takes them (n, …), or tuples that start with them, such as a `DataLoader`
    gives; `batch_size` bounds the memory of passes that do not train; `options` are the other fields of
    `RecipeConfig`, such as `scale="channel"`, `training=False`, `kbits_for={"fc": 9}`, or `target_bits=2.0` for kbits
    "auto". Raises `NetworkError` where the network cannot run.
    """
    inputs = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches]
    if not inputs:
        raise DataError("expected at least one batch of inputs to calibrate on, got none")
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    images = CalibrationImages(torch.cat(inputs), lambda batch: batch, None, batch_size, device)
    recipe, _ = settle_levels(module, images, fill_in(RecipeConfig(kbits=kbits, **options)), seed)
    state = apply_recipe(module, images, recipe, seed)
    provenance = {"ldnq": ldnq.__version__, "kbits": kbits, "left_float": left_float(state)}
    return QuantizedModel(state.student, state.weights, provenance=provenance, folded=state.folded, grids=state.grids)


def apply_recipe(
    module: nn.Module,
    images: CalibrationImages,
    recipe: RecipeConfig,
    seed: int,
    mixed_precision: bool = False,
    journal: Journal | None = None,
    nests: Mapping[str, Nest] | None = None,
) -> QuantizationState:
    """Run the stages of a filled-in and settled `recipe` on a copy of `module`, which is left as it is; from where the
    `journal` is, if there is one. Codes fit into the `nests` of weights by their names."""
    generator = torch.Generator().manual_seed(seed)
    if recipe.training and (recipe.block_steps or recipe.distillation_steps):
        images = images.set_apart(HELD_OUT, generator)
    return apply_stages(module, images, stages(recipe, mixed_precision), generator, journal, nests)


def apply_nested(
    module: nn.Module,
    images: CalibrationImages,
    recipe: RecipeConfig,
    kbits: Iterable[int],
    seed: int,
    mixed_precision: bool = False,
    journals: Callable[[int], Journal | None] = lambda kbits: None,
) -> dict[int, QuantizationState]:
    """As `apply_recipe`, with each of several numbers of levels, the fewest first and as by itself, so that the codes
    of the last state, of the most levels, merge (`ldnq.nesting`) into those of all others. What else they differ in is
    small: scales, batch norms, biases.

    Raises `UsageError` where the recipe would leave more to each than that.
    """
    if recipe.abits:
        raise UsageError(f"expected float activations of nested codebooks, got --abits {recipe.abits}")
    if recipe.training and recipe.cascade_epochs and (recipe.skip or recipe.keep_first_last):
        raise UsageError("the cascade update would train layers that stay float anew for each codebook: --no-training")
    kbits = sorted(set(kbits))
    states: dict[int, QuantizationState] = {}
    nests: dict[str, Nest] = {}
    for levels in kbits:
        headline(f"nested codebooks: {levels} levels")
        settled = replace(recipe, kbits=levels)
        state = apply_recipe(module, images, settled, seed, mixed_precision, journals(levels), nests)
        nests = {name: _nest(weight, nests.get(name), kbits[-1]) for name, weight in state.weights.items()}
        states[levels] = state
    return states


def _nest(weight: QuantizedWeight, nest: Nest | None, most: int) -> Nest:
    """What `nest` is when `weight` is settled, of `most` levels or as many as the weight itself has."""
    levels = weight.codebook.num_levels
    if nest is None:
        return Nest.around(weight.codes, levels, max(levels, most))
    return nest.narrowed(weight.codes, levels)


def apply_stages(
    module: nn.Module,
    images: CalibrationImages,
    chosen: Iterable[Stage],
    generator: torch.Generator,
    journal: Journal | None = None,
    nests: Mapping[str, Nest] | None = None,
) -> QuantizationState:
    """Run the `chosen` stages on a copy of `module`, which is left as it is."""
    state = start(module)
    state.journal, state.nests = journal or state.journal, nests or state.nests
    reached = state.journal.restore(state, generator)
    if state.results:
        log.info("going on after layer %d, %s", len(state.results), state.results[-1].layer.name)
    chosen = list(chosen)
    for number, stage in enumerate(chosen):
        if number >= reached:
            headline(f"stage {number + 1} of {len(chosen)}: {type(stage).__module__.rpartition('.')[2]}")
            state.journal.begin(number, state, generator)
            state = stage(state, images, generator)
    # Another memory layout rounds differently: what is measured and saved has the one that it will be loaded in.
    state.student = copied(state.student, torch.contiguous_format).requires_grad_(False)
    return state


def _circumstances(prepared: Preparation) -> dict[str, Any]:
    """What a run that goes on must have in common with the one that began."""
    calibration = prepared.calibration
    drawn = hashlib.sha256(calibration.indices.astype("<i8").tobytes()).hexdigest() if calibration else ""
    config = prepared.config.to_dict()
    # Where things lie, and what reads them.
    config["data"].pop("data_root"), config["network"].pop("pretrained_dir"), config["runtime"].pop("workers")
    return {
        "configuration": config,
        "weights": digest(prepared.network.module),
        "calibration set": f"{calibration.fingerprint} {drawn[:16]}" if calibration else "none",
        "version": {"ldnq": ldnq.__version__, "torch": torch.__version__},
    }


def _log_levels(recipe: RecipeConfig) -> None:
    if recipe.kbits == AUTO:
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
        "kbits": recipe.kbits,
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
