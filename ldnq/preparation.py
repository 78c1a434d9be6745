"""From a configuration to a float network and the images that it is quantized with."""

import copy
from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric
from torch import nn

from ldnq import ranks, runtime
from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages, CalibrationSet, load_or_draw
from ldnq.config import RunConfig
from ldnq.data import Data, load_data, resolve_dataset, usual_root
from ldnq.datasets import DatasetFamily, datasets
from ldnq.datasets.images import Prepared, in_memory
from ldnq.errors import NetworkError
from ldnq.evaluation import Accuracy
from ldnq.network import Network, find_family, load_network
from ldnq.presets import fill_in
from ldnq.quantized import QuantizationState
from ldnq.soundness import check_weights
from ldnq.synthesis import Synthesis


@dataclass(frozen=True)
class Preparation:
    """A `config` with its dataset named and its recipe filled in, and what it names: `network` is on the device of
    `fabric`, and there is no `calibration` set without training images."""

    config: RunConfig
    fabric: Fabric
    data: Data
    network: Network
    calibration: CalibrationSet | None

    @property
    def mixed_precision(self) -> bool:
        """Whether gradient steps of whole networks run in it."""
        return runtime.mixes_in_training(self.fabric.device.type, self.config.runtime)

    def images(self) -> CalibrationImages:
        """The images drawn, and those that are synthesized."""
        preprocessing, config, options = self.network.preprocessing, self.config.runtime, self.config.calibration
        images = torch.empty(0, 3, preprocessing.image_size, preprocessing.image_size, dtype=torch.uint8)
        if self.calibration:
            prepared = Prepared(self.data.training, preprocessing, self.calibration.indices)
            images, _ = in_memory(prepared, config.workers)
        augmentation = Augmentation(preprocessing.image_size, self.data.family.flip)
        batch_size = config.images_at_once(preprocessing.image_size)
        found = CalibrationImages(
            images, preprocessing.normalize, augmentation, batch_size, self.fabric.device, max_memory=config.max_memory
        )
        if not options.synthesize:
            return found
        synthesis = Synthesis(options.synthesize, mixed_precision=self.mixed_precision)
        generator = torch.Generator().manual_seed(options.seed)
        return replace(found, images=ranks.agreed(lambda: synthesis(self.network.module, found, generator).images))


def settle(config: RunConfig) -> RunConfig:
    """`config` with the name of the dataset and every option of the preset, as a run's folder keeps it."""
    usual = find_family(config.network.model).default_dataset
    dataset = resolve_dataset(config.data.dataset, usual, config.network.model)
    return replace(config, data=replace(config.data, dataset=dataset.name), recipe=fill_in(config.recipe))


def prepare(config: RunConfig) -> Preparation:
    """Find and load what `config` names."""
    config = settle(config)
    dataset = datasets.get(str(config.data.dataset))
    fabric = runtime.start(config.runtime)
    data = _load_data(config, dataset)
    network = load_network(config.network, config.data, dataset, data.num_classes)
    calibration = load_or_draw(data.train, dataset.name, config.calibration)[0] if data.train else None
    check_weights(network.module)
    network.module.to(fabric.device).requires_grad_(False)
    return Preparation(config, fabric, data, network, calibration)


def check_teacher(accuracy: Accuracy, network: Network, images: str) -> None:
    """Raise `NetworkError` where the float `network` only guesses at the `images` that it was measured on."""
    if accuracy.near_chance:
        raise NetworkError(
            f"the float network is right on {accuracy.top1:.1f}% of the {images} images, near chance: checkpoint "
            f"({network.source}), preprocessing or the order of the classes do not match"
        )


def start(module: nn.Module) -> QuantizationState:
    """A student and a teacher that are copies of `module`, in the memory layout in which convolutions are fastest.
    Raises `NetworkError` where weights are not finite."""
    check_weights(module)
    teacher = copied(module, runtime.LAYOUT).requires_grad_(False)
    return QuantizationState(copied(teacher, runtime.LAYOUT).requires_grad_(True), teacher)


def copied(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    """A copy of `module` in eval mode, its weights in this memory layout; raises `NetworkError` where it cannot be."""
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


def _load_data(config: RunConfig, dataset: DatasetFamily) -> Data:
    wanted = config.calibration.calibration_data or config.data.data_root or dataset.embedded
    if not wanted and not usual_root(dataset).is_dir():
        return Data(dataset, None, None)
    return load_data(config.data, dataset, training=config.calibration.calibration_data)
