"""The methods of Brevitas, with settings that are fair to it.

Its batch norms are recalibrated exactly (its own `calibrate_bn` leaves the variance half way), scales come from a grid
of 200 points, learned rounding runs in float32 at a rate that moves it, and GPTQ orders its inputs by activation.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from workbench import Workbench

from ldnq.calibration import CalibrationImages
from ldnq.recalibration import recalibrate

ITERATIONS = 1000
LEARNING_RATE = 5e-3


def rounded(model: nn.Module) -> nn.Module:
    """Every layer of `model` with two-bit weights in a narrow range, {−1, 0, 1}, the first and the last too."""
    from brevitas.core.scaling.standalone import ParameterFromStatsFromParameterScaling
    from brevitas.graph.quantize import layerwise_quantize
    from brevitas.nn import QuantConv2d, QuantLinear
    from brevitas.quant.scaled_int import Int8WeightPerChannelFloatMSE

    weights = Int8WeightPerChannelFloatMSE.let(
        bit_width=2, narrow_range=True, mse_iters=200, scaling_impl=ParameterFromStatsFromParameterScaling
    )
    options = {"weight_quant": weights, "input_quant": None, "bias_quant": None, "return_quant_tensor": False}
    layers = {nn.Conv2d: (QuantConv2d, options), nn.Linear: (QuantLinear, options)}
    return layerwise_quantize(model, compute_layer_map=layers).eval()


def gptq(model: nn.Module, batches: DataLoader) -> None:
    """GPTQ, inputs in the order of their activations."""
    from brevitas_examples.imagenet_classification.ptq.ptq_common import apply_gptq

    apply_gptq(batches, model, act_order=True)


def gpfq(model: nn.Module, batches: DataLoader) -> None:
    """GPFQ, which sees the float network's activations beside the quantized one's."""
    from brevitas_examples.imagenet_classification.ptq.ptq_common import apply_gpfq

    apply_gpfq(batches, model, act_order=True)


def qronos(model: nn.Module, batches: DataLoader) -> None:
    """Qronos, arXiv 2505.11695."""
    from brevitas_examples.imagenet_classification.ptq.ptq_common import apply_qronos

    apply_qronos(model, batches)


def learned_rounding(model: nn.Module, batches: DataLoader, *, blocks: bool) -> None:
    """AdaRound's rounding, by layer or by residual block; scales are learned with blocks."""
    from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
    from brevitas_examples.common.learned_round.learned_round_args import (
        HandlerSpec,
        LossArgs,
        OptimizerArgs,
        TrainerConfig,
        TrainingArgs,
    )
    from brevitas_examples.common.learned_round.learned_round_method import LearnedRoundArgs
    from brevitas_examples.common.learned_round.learned_round_trainer import LearnedRoundTrainer, get_blocks
    from brevitas_examples.imagenet_classification.ptq.learned_round_utils import (
        CacheVision,
        vision_block_forward,
        vision_forward,
    )

    def is_unit(module: nn.Module, name: str) -> bool:
        # Residual blocks of the networks here are called layer1.0 and so on.
        inside = name.startswith("layer")
        if blocks and inside:
            return name.count(".") == 1
        return isinstance(module, QuantWeightBiasInputOutputLayer)

    targets = ["learned_round", "scales"] if blocks else ["learned_round"]
    training = TrainingArgs(
        optimizers_args=[OptimizerArgs(target, "Adam", LEARNING_RATE, {}) for target in targets],
        batch_size=32,
        iters=ITERATIONS,
        losses_args=[LossArgs("round_reg"), LossArgs("mse", {"reduction": "none", "dim": 1})],
        use_best_model=False,
        use_amp=False,
    )
    rounding = HandlerSpec("learned_round", LearnedRoundArgs("hard_sigmoid", {}))
    LearnedRoundTrainer(TrainerConfig(training, [rounding])).train(
        model=model,
        model_forward=vision_forward,
        block_forward=vision_block_forward,
        data_loader=batches,
        cache=CacheVision(),
        get_blocks_fn=lambda network: get_blocks(network, is_unit),
        keep_gpu=True,
    )


def brevitas(
    method: Callable[[nn.Module, DataLoader], None],
) -> Callable[[Workbench, CalibrationImages, int], nn.Module]:
    """A method of Brevitas that ends with batch norms recalibrated."""

    def quantize(bench: Workbench, images: CalibrationImages, seed: int) -> nn.Module:
        batches = list(images.batches())
        # The methods want labels too, and use none.
        labelled = DataLoader(TensorDataset(torch.cat(batches), torch.zeros(len(images), dtype=torch.long)), 50)
        quantized = rounded(copy.deepcopy(bench.network.module))
        with torch.no_grad():
            quantized(batches[0])  # sets the scales
        method(quantized, labelled)
        recalibrate(quantized, batches)
        return quantized.eval()

    return quantize
