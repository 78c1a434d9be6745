"""A network with its data, for benchmarks that try parts of a run by themselves."""

from torch import nn

from ldnq import runtime
from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages, draw
from ldnq.config import CalibrationConfig, DataConfig, NetworkConfig, RuntimeConfig
from ldnq.data import load_data, resolve_dataset
from ldnq.datasets.images import Prepared, in_memory
from ldnq.measurement import measure
from ldnq.network import load_network


class Workbench:
    """The network `model`, with the weights that ship or those in `checkpoint`, on the dataset of `config`."""

    def __init__(self, model: str, config: DataConfig, checkpoint: str | None = None) -> None:
        self.family = resolve_dataset(config.dataset, "", model)
        self.data = load_data(config, self.family)
        self.network = load_network(
            NetworkConfig(model, checkpoint=checkpoint), config, self.family, self.data.num_classes
        )
        self.config = RuntimeConfig()
        self.fabric = runtime.start(self.config)
        self.mixed_precision = runtime.mixes_in_training(self.fabric.device.type, self.config)

    def calibration(self, samples: int, seed: int) -> CalibrationImages:
        """So many training images, drawn with this seed."""
        preprocessing = self.network.preprocessing
        drawn = draw(self.data.train, self.family.name, CalibrationConfig(samples=samples, seed=seed))
        images, _ = in_memory(Prepared(self.data.train, preprocessing, drawn.indices))
        augmentation = Augmentation(preprocessing.image_size, self.family.flip)
        return CalibrationImages(
            images, preprocessing.normalize, augmentation, self.config.batch_size, self.fabric.device
        )

    def top1(self, module: nn.Module) -> float:
        """On the test images, in percent."""
        return measure(module, self.data, self.network.preprocessing, self.config, self.fabric, "evaluating").top1
