"""The functions of the package: what the commands of the same names do, with the options of the same names.

`ldnq.quantize`, `evaluate`, `train` and `sample` are these; the others share their names with modules, and are called
as `ldnq.api.export(…)`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, overload

from torch import Tensor, nn

from ldnq import baseline, measurement, pipeline
from ldnq.appraisal import complexity_of
from ldnq.baseline import Baseline
from ldnq.calibration import CalibrationSet, load_or_draw
from ldnq.complexity import LayerComplexity
from ldnq.config import COMPARISON, KBITS, DataConfig, NetworkConfig, RunConfig, TrainedConfig, option_names
from ldnq.data import load_data
from ldnq.datasets import datasets
from ldnq.errors import UsageError
from ldnq.export import Exported, export_checkpoint
from ldnq.formats import formats
from ldnq.qat import QuantizedRun
from ldnq.qat import train as train_quantized
from ldnq.quantized import QuantizedModel
from ldnq.registry import unknown_name
from ldnq.report import write_comparison, write_report
from ldnq.results import RunResult
from ldnq.sensitivity import Sensitivity
from ldnq.survey import survey
from ldnq.sweep import Sweep, no_runs
from ldnq.tables import Summary
from ldnq.training_recipe import TrainingRecipe

T = TypeVar("T")


@overload
def quantize(
    network: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    kbits: int | str | tuple[int, ...] = ...,
    **options: Any,
) -> QuantizedModel: ...
@overload
def quantize(
    network: str, *, kbits: int | str | tuple[int, ...] = ..., output: Path | str | None = ..., **options: Any
) -> QuantizedModel: ...
def quantize(
    network: nn.Module | str,
    batches: Iterable[Tensor | tuple[Tensor, ...]] | None = None,
    kbits: int | str | tuple[int, ...] = 3,
    *,
    output: Path | str | None = None,
    **options: Any,
) -> QuantizedModel:
    """A quantized copy of any network, from a small sample of its inputs; or of one by name, as `ldnq quantize` does.

    Of a module, which is left as it is, `batches` yields inputs as it takes them (n, …), or tuples that start with
    them, such as a `DataLoader` gives; `options` are those of `ldnq.pipeline.quantize`. Of a name they are those of the
    command, and `output` is the folder of the run. Raises `NetworkError` where the network cannot run.

    >>> import ldnq, torch
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    >>> model = ldnq.quantize(network, [torch.rand(8, 3, 2, 2)], kbits=5, preset="fast")
    >>> model.weights["1.weight"].codebook.levels
    (-2.0, -1.0, 0.0, 1.0, 2.0)
    """
    if not isinstance(network, str):
        if batches is None or output is not None:
            raise UsageError("expected batches of inputs with a module, and no output")
        return pipeline.quantize(network, batches, kbits, **options)
    if batches is not None:
        raise UsageError(f"expected a dataset with {network}, got batches")
    config = _config(options | {"model": network, "kbits": kbits})
    return pipeline.run(config, None if output is None else Path(output)).model


def evaluate(
    checkpoint: Path | str | None = None,
    *,
    bits: int | Sequence[int] = (),
    kbits: int | Sequence[int] = (),
    **options: Any,
) -> dict[str, Any]:
    """Accuracy of a quantized `checkpoint`, of several widths at those of `bits` or `kbits`, or of a float `model`, as
    `ldnq evaluate` gives it: plain values.

    >>> import ldnq
    >>> accuracy = ldnq.evaluate(model="resnet20", dataset="digits")
    >>> f"{accuracy['top1']:.0f}% of {accuracy['samples']}"
    '99% of 450'
    """
    if checkpoint is None and "model" not in options:
        raise UsageError("expected a checkpoint or a model, got neither")
    config = _config({"model": ""} | options)
    if checkpoint is None:
        return measurement.evaluate_network(config)
    widths = ((width,) if isinstance(width, int) else width for width in (bits, kbits))
    return measurement.evaluate_checkpoint(Path(checkpoint), config, *widths)


def train(
    model: str,
    *,
    output: Path | str | None = None,
    init: Path | str | None = None,
    teacher: Path | str | None = None,
    teacher_model: str | None = None,
    half: bool = False,
    compiled: bool = False,
    tensorboard: bool = False,
    **options: Any,
) -> tuple[Path, dict[str, Any]]:
    """A float network trained as `ldnq train` does: the file of its weights, and their model card.

    `options` are those of the command: of the data and the machine, and the fields of `TrainingRecipe`.
    """
    recipe, rest = _taken(TrainingRecipe, options)
    config = _config({"model": model, "batch_size": recipe.batch_size} | rest)
    folder, start, taught_by = (None if path is None else Path(path) for path in (output, init, teacher))
    command = f"ldnq.train({model!r}, …)"
    wanted = Baseline(config, recipe, folder, start, half, compiled, tensorboard, command, taught_by, teacher_model)
    return wanted.weights, baseline.train(wanted)


def qat(
    model: str,
    *,
    output: Path | str | None = None,
    init: Path | str | None = None,
    teacher: Path | str | None = None,
    teacher_model: str | None = None,
    tensorboard: bool = False,
    **options: Any,
) -> RunResult:
    """A network trained with quantized weights and activations as `ldnq qat` does: what the run made, and its metrics.

    `options` are those of the command: of the data and the machine, the fields of `TrainedConfig` and of
    `TrainingRecipe`.
    """
    quantization, rest = _taken(TrainedConfig, options)
    recipe, rest = _taken(TrainingRecipe, rest)
    folder, taught_by = (None if path is None else Path(path) for path in (output, teacher))
    start = None if init is None else str(init)
    wanted = QuantizedRun(
        _config({"model": model, "batch_size": recipe.batch_size} | rest),
        quantization,
        recipe,
        folder,
        start,
        taught_by,
        teacher_model,
        tensorboard,
    )
    return train_quantized(wanted)


def sample(dataset: str, **options: Any) -> CalibrationSet:
    """The calibration set that `ldnq sample` draws and keeps in `calib_data/`."""
    config = _config({"model": "", "dataset": dataset} | options)
    data = load_data(config.data, datasets.get(dataset))
    return load_or_draw(data.training, dataset, config.calibration)[0]


def sensitivity(
    model: str, kbits: Sequence[int] = KBITS, *, output: Path | str | None = None, **options: Any
) -> list[Sensitivity]:
    """What each layer alone does to the network at each of these numbers of levels, as `ldnq sensitivity` measures."""
    config = _config({"preset": "fast"} | options | {"model": model})
    return survey(config, tuple(kbits), None if output is None else Path(output)).found


def sweep(
    models: Sequence[str],
    kbits: Sequence[int] = KBITS,
    seeds: int = 1,
    *,
    output: Path | str = "results/sweep",
    **options: Any,
) -> list[Summary]:
    """Runs of every network with every number of levels and so many draws, as `ldnq sweep`: what they come to.

    Raises `UsageError` in the end where a network could not be quantized.
    """
    config = _config(options | {"model": models[0], "kbits": kbits[0]})
    summaries, failed = Sweep(config, models, kbits, range(seeds), Path(output))()
    if failed:
        raise no_runs(failed)
    return summaries


def complexity(
    model: str,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    own: str | None = None,
    **model_args: Any,
) -> list[LayerComplexity]:
    """Multiply-accumulates of one image and parameters of every layer, as `ldnq complexity` counts them: of a network
    by name with `model_args`, or of a checkpoint or a run's folder, whose network may be the factory `own`.

    >>> from ldnq import api
    >>> sum(layer.macs for layer in api.complexity("resnet20", width=32))
    161318144
    """
    return complexity_of(model, model_args, num_classes, image_size, own)


def export(
    checkpoint: Path | str,
    output: Path | str,
    format: str = "onnx",
    *,
    model: str | None = None,
    fold_batchnorm: bool = False,
    verify: bool = True,
    dataset: str | None = None,
    data_root: str | None = None,
    image_size: int | None = None,
    bits: int | None = None,
    kbits: int | None = None,
    **options: Any,
) -> Exported:
    """A checkpoint or a run's folder as a file for another runtime, tried there, as `ldnq export` writes it; `bits` or
    `kbits` is the width of a network of several, `options` are those of the format, such as `weight_type="int4"`."""
    data = DataConfig(dataset, data_root, image_size=image_size)
    own = NetworkConfig(model) if model else None
    form = formats.get(format)(**options)
    _, exported = export_checkpoint(
        Path(checkpoint),
        Path(output),
        form,
        data,
        own,
        fold_batchnorm=fold_batchnorm,
        verify=verify,
        bits=bits,
        kbits=kbits,
    )
    return exported


def report(*runs: Path | str, output: Path | str | None = None) -> Path:
    """The report of a run's folder written anew, or one page that compares several, as `ldnq report` does."""
    folders, path = [Path(run) for run in runs], None if output is None else Path(output)
    return write_report(folders[0], path) if len(folders) == 1 else write_comparison(folders, path or COMPARISON)


def _taken(kind: type[T], options: dict[str, Any]) -> tuple[T, dict[str, Any]]:
    """A `kind` made of those of the options that are its fields, and the others."""
    names = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    own = kind(**{name: value for name, value in options.items() if name in names})
    return own, {name: value for name, value in options.items() if name not in names}


def _config(options: dict[str, Any]) -> RunConfig:
    known = option_names()
    for name in options:
        if name not in known:
            raise UsageError(unknown_name("option", name, known))
    return RunConfig.from_options(options)
