"""Float baselines: trained, measured, and written as weights with a model card in their header."""

import logging
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ldnq
from ldnq import checkpoints, ranks, runtime, tensorboard
from ldnq.augmentation import Augmentation
from ldnq.complexity import complexity, in_words
from ldnq.config import RunConfig
from ldnq.data import Data, load_data, resolve_dataset
from ldnq.datasets.registry import DatasetFamily
from ldnq.errors import DataError, UsageError, keeping
from ldnq.evaluation import Accuracy
from ldnq.files import write_json
from ldnq.measurement import measure
from ldnq.models.registry import ModelFamily
from ldnq.network import build, check_outputs, decide_preprocessing, find_family, start_from
from ldnq.preprocessing import Preprocessing
from ldnq.progress import headline
from ldnq.runs import RunFolder
from ldnq.training import Trainer
from ldnq.training_data import load_teacher, training_images
from ldnq.training_recipe import TrainingRecipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Baseline:
    """What 'ldnq train' was asked for: a network trained by `recipe` from random weights or those in the file `init`,
    written to the folder `output`, `half` as float16; `curves` are for TensorBoard. It learns from the network with the
    weights `teacher` where they are given."""

    config: RunConfig
    recipe: TrainingRecipe
    output: Path | None
    init: Path | None
    half: bool
    compiled: bool
    curves: bool
    command: str
    teacher: Path | None = None
    teacher_model: str | None = None

    @cached_property
    def family(self) -> ModelFamily:
        """Of the network."""
        return find_family(self.config.network.model)

    @cached_property
    def dataset(self) -> DatasetFamily:
        """The one that is named, else the network's usual one."""
        return resolve_dataset(self.config.data.dataset, self.family.default_dataset, self.config.network.model)

    @property
    def weights(self) -> Path:
        """The file that is written last."""
        name = f"{self.config.network.file_name}-{self.dataset.name}"
        return (self.output or Path("results") / f"train-{name}") / f"{name}.safetensors"

    @property
    def state(self) -> Path:
        """The file that carries the run over an interruption."""
        return self.weights.with_name("state.pt")

    def write_config(self) -> None:
        """Write `config.json`, from which 'ldnq train --resume' goes on: options by their names, and the command."""
        tables = self.config.to_dict()
        options = {part: tables[part] for part in ("network", "data", "runtime")} | asdict(self.recipe)
        options |= {"init": self.init and str(self.init), "half": self.half, "compile": self.compiled}
        options |= {"tensorboard": self.curves, "command": self.command}
        options |= {"teacher": self.teacher and str(self.teacher), "teacher_model": self.teacher_model}
        write_json(self.weights.with_name("config.json"), options)


def train(baseline: Baseline) -> dict[str, Any]:
    """Train, or go on where a run into the same folder stopped, and write the weights; returns their card.

    Raises `UsageError` where another run is writing to the folder, or where it holds the weights of one that ended and
    nothing to go on from.
    """
    baseline.recipe.check_teacher(baseline.teacher is not None)
    with runtime.together(baseline.config.runtime):
        return _alone(baseline)


def _alone(baseline: Baseline) -> dict[str, Any]:
    folder = ranks.agreed(lambda: RunFolder.create(baseline.weights.parent))
    with folder.alone():
        if not baseline.state.exists():
            if baseline.weights.exists():
                raise UsageError(f"{baseline.weights} is there already: use another --output")
            baseline.write_config()
        return _train(baseline)


def _train(baseline: Baseline) -> dict[str, Any]:
    config, recipe = baseline.config, baseline.recipe
    data = load_data(config.data, baseline.dataset)
    if not data.training.labelled:
        raise DataError(f"expected labelled images to train on, found none in dataset {data.family.name}")
    preprocessing = decide_preprocessing(baseline.family, config.data, baseline.dataset)
    torch.manual_seed(recipe.seed)
    module, model_args = _start(config, data, baseline.init)
    check_outputs(module, preprocessing, data.num_classes or 0)
    teacher = None
    if baseline.teacher:
        teacher = load_teacher(
            config.network, baseline.teacher, baseline.teacher_model, config.data, data, preprocessing
        )
    subject = f"{config.network.model} {model_args} on {data.family.name} {data.training.fingerprint()} as "
    subject += f"{preprocessing}" + (f" from {baseline.init.name}" if baseline.init else "")
    subject += f" by {baseline.teacher.name}" if baseline.teacher else ""
    fabric = runtime.start(config.runtime, training=True)
    headline(f"{config.network.model} on {data.family.name}")
    log.info("%s", in_words(complexity(module, preprocessing.image_size)))
    learned = training_images(data, preprocessing, recipe, config.runtime.workers)
    augmentation = Augmentation(preprocessing.image_size, data.family.flip)
    test = partial(_measure, data=data, preprocessing=preprocessing, config=config)
    trainer = Trainer(
        module, learned.images, learned.labels, preprocessing, augmentation, recipe, fabric, baseline.state, subject,
        baseline.compiled, teacher=teacher, held_out=learned.held_out, test=test,
        sync_batchnorm=config.runtime.sync_batchnorm,
    )  # fmt: skip
    if trainer.resume():
        baseline.write_config()
        log.info("going on after epoch %d of %d", trainer.epoch, recipe.epochs)
    curves = baseline.weights.with_name("tensorboard") if baseline.curves else None
    with keeping(partial(_kept, trainer)), tensorboard.writing(curves):
        trainer.run()

    weights = {key: _stored(tensor, baseline.half) for key, tensor in module.state_dict().items()}
    # What is measured is what is stored.
    module.load_state_dict(weights)
    card = {
        "model": config.network.model,
        "model_args": model_args,
        **_description(data, preprocessing),
        "train_images": len(learned.images),
        "recipe": asdict(recipe),
        "command": baseline.command,
        **_accuracy(test(module)),
        "ldnq": ldnq.__version__,
        "torch": torch.__version__,
    }
    checkpoints.write(baseline.weights, weights, card)
    return card


def _kept(trainer: Trainer) -> str:
    if not trainer.state.exists():
        return "nothing was saved"
    return (
        f"{trainer.epoch} of {trainer.recipe.epochs} epochs are saved in {trainer.state}, "
        f"'ldnq train --resume {trainer.state.parent}' goes on"
    )


def _start(config: RunConfig, data: Data, init: Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network before training, and the arguments that it was built with."""
    model_args = dict(config.network.model_args)
    if ":" not in config.network.model or config.network.num_classes:
        model_args["num_classes"] = config.network.num_classes or data.num_classes
    module = build(config.network.model, model_args)
    if init:
        start_from(module, checkpoints.read(init)[0], str(init))
    return module, model_args


def _description(data: Data, preprocessing: Preprocessing) -> dict[str, Any]:
    return {
        "dataset": data.family.name,
        "num_classes": data.num_classes,
        "class_names": list(data.class_names),
        "preprocessing": preprocessing.to_dict(),
    }


def _measure(module: nn.Module, data: Data, preprocessing: Preprocessing, config: RunConfig) -> Accuracy | None:
    fabric = runtime.start(config.runtime)
    return measure(module, data, preprocessing, config.runtime, fabric, "evaluating")


def _accuracy(accuracy: Accuracy | None) -> dict[str, Any]:
    return {
        "top1": accuracy and accuracy.top1,
        "top5": accuracy and accuracy.top5,
        "test_images": accuracy.samples if accuracy else 0,
    }


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.half() if half and tensor.is_floating_point() else tensor
