"""`ldnq qat`: a network trained with quantized weights and activations, measured and kept as any other run."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ldnq
from ldnq import checkpoints, formats, ranks, results, runtime, tensorboard
from ldnq.appraisal import quantized_complexity
from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages, draw
from ldnq.complexity import in_words
from ldnq.config import RunConfig, TrainedConfig
from ldnq.data import Data, load_data, resolve_dataset
from ldnq.datasets import DatasetFamily
from ldnq.datasets.images import Prepared, in_memory
from ldnq.errors import CheckpointError, DataError, MissingWeightsError, UsageError, keeping
from ldnq.evaluation import Accuracy
from ldnq.measurement import measure, top1_by_width
from ldnq.models import ModelFamily
from ldnq.network import Network, build, check_outputs, decide_preprocessing, find_family, load_network, start_from
from ldnq.preparation import copied, start
from ldnq.progress import headline
from ldnq.quantized import QuantizationState, QuantizedModel
from ldnq.quantizers import methods
from ldnq.report import write_report
from ldnq.results import RunResult, left_float
from ldnq.runs import RunFolder, default_folder
from ldnq.stages.training import Pupil, QuantizedTraining
from ldnq.stages.widths import WidthCalibration
from ldnq.training import Trainer
from ldnq.training_data import load_teacher, split, training_images
from ldnq.training_recipe import TrainingRecipe

log = logging.getLogger(__name__)

# Images that steps of activations are first fitted to.
EXAMPLES = 128
PRETRAINED, SCRATCH = "pretrained", "scratch"


@dataclass(frozen=True)
class QuantizedRun:
    """What 'ldnq qat' was asked for: the network of `config` trained by `recipe` as `quantization` says, from `init`,
    which is "pretrained", "scratch" or a file of weights, None for whichever of the first two there is. `teacher` is
    a file of weights of the same network to distil from; `curves` are for TensorBoard."""

    config: RunConfig
    quantization: TrainedConfig
    recipe: TrainingRecipe
    output: Path | None = None
    init: str | None = None
    teacher: Path | None = None
    teacher_model: str | None = None
    curves: bool = False
    command: str | None = None

    def check(self) -> None:
        """Raise `LdnqError` where files are named that do not exist, or options contradict each other."""
        start = None if self.init in (None, PRETRAINED, SCRATCH) else Path(str(self.init))
        for path in (start, self.teacher):
            if path is not None and not path.exists():
                raise CheckpointError(f"no weights in {path}: the file does not exist")
        if self.config.network.checkpoint and self.init not in (None, PRETRAINED):
            raise UsageError(f"expected --checkpoint or --init {self.init}, got both")
        self.recipe.check_teacher(self.teacher is not None)

    def write_config(self, folder: RunFolder) -> None:
        """Write `config.json`, from which 'ldnq qat --resume' goes on: options by their names."""
        tables = self.config.to_dict()
        options = {part: tables[part] for part in ("network", "data", "runtime")}
        options["quantization"] = asdict(self.quantization)
        options["training"] = asdict(self.recipe) | {
            "init": self.init,
            "teacher": self.teacher and str(self.teacher),
            "teacher_model": self.teacher_model,
            "tensorboard": self.curves,
        }
        folder.write_config(options)


def train(wanted: QuantizedRun) -> RunResult:
    """Train, or go on where a run into the same folder stopped, measure and save."""
    wanted.check()
    with runtime.together(wanted.config.runtime):
        return _train(wanted)


def _train(wanted: QuantizedRun) -> RunResult:
    started = time.perf_counter()
    config = wanted.config
    family = find_family(config.network.model)
    dataset = resolve_dataset(config.data.dataset, family.default_dataset, config.network.model)
    what = wanted.quantization.method
    name = config.network.file_name, dataset.name, what
    folder = ranks.agreed(lambda: RunFolder.create(wanted.output or default_folder(*name)))
    with folder.alone(), tensorboard.writing(folder.path / "tensorboard" if wanted.curves else None):
        if not folder.training.exists():  # else the run that it belongs to has written its own
            wanted.write_config(folder)
        lesson = Lesson.prepare(wanted, family, dataset)
        headline(f"{config.network.model} on {dataset.name}, {what}")
        model, metrics, teacher = _run(lesson, folder)
        metrics |= {
            "command": wanted.command,
            "seconds": time.perf_counter() - started,
            "environment": runtime.environment(),
        }
        ranks.agreed(lambda: _finish(folder, metrics))
    return RunResult(model, metrics, folder.path, teacher)


def _finish(folder: RunFolder, metrics: dict[str, Any]) -> None:
    folder.write_metrics(metrics)
    write_report(folder.path)
    folder.training.unlink(missing_ok=True)


@dataclass(frozen=True)
class Lesson:
    """What a run `wanted` has to work with: labelled `data`, and the `network` it starts from, whose weights are random
    if it is from `scratch`."""

    wanted: QuantizedRun
    data: Data
    network: Network
    scratch: bool

    @classmethod
    def prepare(cls, wanted: QuantizedRun, family: ModelFamily, dataset: DatasetFamily) -> "Lesson":
        """Load the images, and build the network; raises `DataError` where the images have no labels."""
        data = load_data(wanted.config.data, dataset)
        if not data.training.labelled:
            raise DataError(f"expected labelled images to train on, found none in dataset {dataset.name}")
        torch.manual_seed(wanted.recipe.seed)
        network, scratch = _find_network(wanted, family, data)
        check_outputs(network.module, network.preprocessing, data.num_classes or 0)
        return cls(wanted, data, network, scratch)

    def examples(self, device: torch.device) -> CalibrationImages:
        """A few training images as they are."""
        count = min(EXAMPLES, len(self.data.training))
        chosen = torch.randperm(len(self.data.training), generator=self.generator())[:count].sort().values.numpy()
        return self._images(chosen, device)

    def sample(self, device: torch.device) -> CalibrationImages:
        """As many training images as a calibration set has."""
        config = self.wanted.config
        drawn = draw(self.data.training, self.data.family.name, config.calibration)
        return self._images(drawn.indices, device)

    def generator(self) -> torch.Generator:
        """Of everything random in the stage."""
        return torch.Generator().manual_seed(self.wanted.recipe.seed)

    def _images(self, chosen: np.ndarray, device: torch.device) -> CalibrationImages:
        preprocessing, runtime_config = self.network.preprocessing, self.wanted.config.runtime
        images, _ = in_memory(Prepared(self.data.training, preprocessing, chosen), runtime_config.workers)
        return CalibrationImages(images, preprocessing.normalize, None, runtime_config.batch_size, device)

    def subject(self) -> str:
        """What is trained on what, so that a run that goes on is the same one."""
        network, data = self.network, self.data
        return (
            f"{network.model} {dict(network.model_args)} on {data.family.name} {data.training.fingerprint()} as "
            f"{network.preprocessing} from {network.source} by {self.wanted.quantization} with "
            f"{self.wanted.teacher or 'no teacher'}"
        )


def _find_network(wanted: QuantizedRun, family: ModelFamily, data: Data) -> tuple[Network, bool]:
    """The network to start from, in the form that is trained quantized, and whether its weights are random."""
    config, init = wanted.config, wanted.init
    form = dict(family.quantized_args)
    if methods.get(wanted.quantization.method).binary:
        form |= family.binary_args
    if init in (None, PRETRAINED):
        asked = replace(config.network, model_args=form | config.network.model_args)
        try:
            return load_network(asked, config.data, data.family, data.num_classes), False
        except MissingWeightsError as error:
            if init:
                raise
            log.info("starting from random weights: %s", error)
    tensors, card = ({}, {}) if init in (None, SCRATCH) else _weights(Path(init))
    arguments = form | {**card.get("model_args", {}), **config.network.model_args}
    if ":" not in config.network.model or config.network.num_classes:
        arguments["num_classes"] = config.network.num_classes or data.num_classes
    module = build(config.network.model, arguments)
    preprocessing = decide_preprocessing(family, config.data, data.family, card)
    if tensors:
        start_from(module, tensors, str(init))
    source = str(init) if tensors else "random weights"
    return Network(module, config.network.model, arguments, preprocessing, source), not tensors


def _weights(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """State dict and model card in a file of float weights, in a quantized checkpoint, or in a run's folder."""
    if path.is_dir():
        found = [*path.glob("model.h5"), *path.glob("*.safetensors")]
        if not found:
            raise CheckpointError(f"no weights in {path}: expected a run of 'ldnq quantize' or 'ldnq train'")
        path = found[0]
    if path.suffix not in (".h5", ".onnx"):
        tensors, card = checkpoints.read(path)
        return dict(tensors), card
    contents = formats.read(path)
    if contents.folded or contents.inputs or contents.precisions:
        what = "those of several widths" if contents.precisions else "trained ones"
        raise UsageError(f"expected weights of a float network or of 'ldnq quantize' in {path}, found {what}")
    card = {"model_args": contents.model_args}
    if contents.preprocessing:
        card["preprocessing"] = contents.preprocessing.to_dict()
    return contents.tensors | {name: weight.dequantize() for name, weight in contents.weights.items()}, card


def _run(lesson: Lesson, folder: RunFolder) -> tuple[QuantizedModel, dict[str, Any], Accuracy | None]:
    wanted, data, network = lesson.wanted, lesson.data, lesson.network
    config, quantization = wanted.config, wanted.quantization
    fabric = runtime.start(config.runtime)
    network.module.to(fabric.device)
    weigh = partial(measure, data=data, preprocessing=network.preprocessing, config=config.runtime, fabric=fabric)
    teacher = None if lesson.scratch else weigh(network.module, description="evaluating the network")
    begun = time.perf_counter()
    stage = QuantizedTraining(
        methods.get(quantization.method)(**quantization.options),
        partial(_fit, lesson, folder, weigh),
        quantization.skip,
        quantization.keep_first_last,
        quantization.update == "quantized",
        find_family(network.model).stay_float,
    )
    images = lesson.examples(fabric.device)
    state = stage(start(network.module), images, lesson.generator())
    if quantization.calibrate_bits:
        calibrate = WidthCalibration(quantization.calibrate_bits)
        state = calibrate(state, lesson.sample(fabric.device), lesson.generator())
    state.student = copied(state.student, torch.contiguous_format).requires_grad_(False)
    quantizing = time.perf_counter() - begun
    headline("evaluating and saving")
    accuracy = weigh(state.student, description="evaluating the result")

    metrics = _metrics(lesson, state) | results.accuracy_metrics(teacher, accuracy)
    if state.precisions and accuracy:
        metrics["top1_at"] = top1_by_width(state.student, state.precisions, accuracy, weigh)
    model = QuantizedModel(
        module=state.student.cpu(),
        weights=state.weights,
        model=network.model,
        model_args=network.model_args,
        preprocessing=network.preprocessing,
        class_names=data.class_names,
        provenance={"ldnq": ldnq.__version__, "source": network.source, "left_float": left_float(state)} | metrics,
        inputs=state.inputs,
        precisions=state.precisions,
    )
    saved = ranks.agreed(
        lambda: results.save(folder, state, model, images, data, network.preprocessing, teacher, accuracy)
    )
    log.info("%s", in_words(quantized_complexity(model, network.preprocessing.image_size)))
    return model, metrics | saved | {"quantizing_seconds": quantizing}, teacher


def _fit(lesson: Lesson, folder: RunFolder, weigh: Callable[..., Accuracy | None], pupil: Pupil) -> None:
    """Train the pupil on the labelled images, from where an earlier run was."""
    wanted, data, preprocessing = lesson.wanted, lesson.data, lesson.network.preprocessing
    config = wanted.config
    found = training_images(data, preprocessing, wanted.recipe, config.runtime.workers)
    teacher = None
    if wanted.teacher:
        teacher = load_teacher(config.network, wanted.teacher, wanted.teacher_model, config.data, data, preprocessing)
    trainer = Trainer(
        pupil.module,
        found.images,
        found.labels,
        preprocessing,
        Augmentation(preprocessing.image_size, data.family.flip),
        wanted.recipe,
        runtime.start(config.runtime, training=True),
        folder.training,
        lesson.subject(),
        parameters=pupil.parameters,
        before_step=pupil.before_step,
        after_step=pupil.after_step,
        teacher=teacher,
        widths=pupil.widths,
        supervision=wanted.quantization.supervision or "hard",
        sync_batchnorm=config.runtime.sync_batchnorm,
        held_out=found.held_out,
        test=partial(weigh, description="testing"),
    )
    if trainer.resume():
        wanted.write_config(folder)
        log.info("going on after epoch %d of %d", trainer.epoch, wanted.recipe.epochs)
    with keeping(lambda: _kept(trainer, folder)):
        trainer.run()


def _kept(trainer: Trainer, folder: RunFolder) -> str:
    if not trainer.state.exists():
        return "nothing was saved"
    epochs = f"{trainer.epoch} of {trainer.recipe.epochs} epochs are saved"
    return f"{epochs}, 'ldnq qat --resume {folder.path}' goes on"


def _metrics(lesson: Lesson, state: QuantizationState) -> dict[str, Any]:
    wanted, quantization = lesson.wanted, lesson.wanted.quantization
    codebook = next((weight.codebook for weight in state.weights.values()), None)
    scales = {weight.scale.numel() > 1 for weight in state.weights.values()}
    return {
        "model": wanted.config.network.model,
        "dataset": lesson.data.family.name,
        "method": quantization.method,
        "preset": None,
        "solver": None,
        "kbits": codebook and codebook.num_levels,
        "levels": list(codebook.levels) if codebook else None,
        "scale": "channel" if any(scales) else "layer",
        "training": True,
        "seed": wanted.recipe.seed,
        "calibration_samples": 0,
        "synthesized_samples": 0,
        "train_images": len(split(len(lesson.data.training), wanted.recipe.hold_out, wanted.recipe.seed)[0]),
        "epochs": wanted.recipe.epochs,
        "update": quantization.update,
        **{name: getattr(quantization, name) for name in ("wbits", "abits", "gbits", "input_scale")},
        "bits": state.precisions and list(state.precisions.widths),
        "supervision": quantization.supervision,
    }
