"""The network of digits that ships, a layer of it, and what quantizing makes of it: what figures are drawn from."""

from functools import cache

import torch

from ldnq.calibration import CalibrationImages, draw
from ldnq.codebook import Codebook
from ldnq.config import CalibrationConfig, DataConfig, NetworkConfig
from ldnq.data import load_data
from ldnq.datasets import datasets
from ldnq.datasets.images import Prepared, in_memory
from ldnq.graph import Layer, find_layers, run_to
from ldnq.moments import gather_moments
from ldnq.network import Network, load_network
from ldnq.problem import LayerProblem, Solver
from ldnq.quantized import QuantizationState
from ldnq.recipe import apply_stages
from ldnq.stages.layerwise import Layerwise

LAYER = "layer3.1.conv2"


@cache
def digits() -> tuple[Network, CalibrationImages]:
    """The network, and a hundred training images."""
    data = load_data(DataConfig(), datasets.get("digits"))
    network = load_network(NetworkConfig("resnet20"), DataConfig(), data.family, data.num_classes)
    network.module.requires_grad_(False)
    indices = draw(data.train, "digits", CalibrationConfig(samples=100)).indices
    images, _ = in_memory(Prepared(data.train, network.preprocessing, indices))
    return network, CalibrationImages(images, network.preprocessing.normalize, None, 100, torch.device("cpu"))


def chosen() -> Layer:
    """The layer that is shown where one is enough."""
    network, images = digits()
    return next(layer for layer in find_layers(network.module, images.images[:2].float())[0] if layer.name == LAYER)


@cache
def problem(kbits: int) -> LayerProblem:
    """Of that layer in the float network."""
    network, images = digits()
    layer, module = chosen(), network.module.get_submodule(LAYER)
    moments = gather_moments(layer, module, module, run_to(network.module, LAYER, next(images.batches())))
    return LayerProblem(layer.to_matrix(module.weight.double()), moments.gram, Codebook.power_of_two(kbits))


@cache
def quantized(asymmetric: bool, solver: Solver) -> QuantizationState:
    """The network at three levels, layer by layer."""
    network, images = digits()
    stage = Layerwise(solver, Codebook.power_of_two(3), asymmetric=asymmetric)
    return apply_stages(network.module, images, [stage], torch.Generator().manual_seed(0))


@torch.no_grad()
def distance(state: QuantizationState, layer: Layer) -> float:
    """The relative error of what the layer's batch norm gives, on test images."""
    name = layer.name.replace("conv", "bn")
    ((_, found),), ((_, wanted),) = (run_to(module, name, unseen()) for module in (state.student, state.teacher))
    return float((found - wanted).square().sum() / wanted.square().sum())


@cache
def unseen() -> torch.Tensor:
    """The test images."""
    network, _ = digits()
    test = load_data(DataConfig(), datasets.get("digits")).test
    return network.preprocessing.normalize(in_memory(Prepared(test, network.preprocessing))[0])
