"""Brevitas and ldnq on the same network, calibration images and test images: three levels, a scale a channel.

    pip install . "brevitas==0.13.4" accelerate
    python benchmarks/other_tools.py --data-root DIR [--checkpoint FILE --mean R,G,B --std R,G,B]

writes `other_tools.md`, rows kept in `other_tools.json`. To be fair to Brevitas: its batch norms are recalibrated
exactly (its own `calibrate_bn` leaves the variance half way), scales come from a grid of 200 points, learned rounding
runs in float32 at a rate that moves it, and GPTQ orders its inputs by activation.
"""

import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rows import SAMPLES, digest, publish, spread
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ldnq import runtime
from ldnq.augmentation import Augmentation
from ldnq.calibration import CalibrationImages, draw
from ldnq.commands.options import Triple
from ldnq.config import CalibrationConfig, DataConfig, NetworkConfig, RecipeConfig, RuntimeConfig
from ldnq.data import load_data, resolve_dataset
from ldnq.datasets.images import Prepared, in_memory
from ldnq.files import write_json
from ldnq.measurement import measure
from ldnq.network import load_network
from ldnq.pipeline import apply_recipe
from ldnq.presets import fill_in
from ldnq.recalibration import recalibrate

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
ITERATIONS = 1000
LEARNING_RATE = 5e-3
PRESETS = ("paper", "fast", "balanced", "best")


# A network and calibration images, and a seed, to a quantized network.
Method = Callable[[nn.Module, CalibrationImages, int], nn.Module]


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
        optimizers_args=[OptimizerArgs(target, "adam", LEARNING_RATE, {}) for target in targets],
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


def brevitas(method: Callable[[nn.Module, DataLoader], None]) -> Method:
    """A method of Brevitas that ends with batch norms recalibrated."""

    def quantize(network: nn.Module, images: CalibrationImages, seed: int) -> nn.Module:
        batches = list(images.batches())
        # The methods want labels too, and use none.
        labelled = DataLoader(TensorDataset(torch.cat(batches), torch.zeros(len(images), dtype=torch.long)), 50)
        quantized = rounded(copy.deepcopy(network))
        with torch.no_grad():
            quantized(batches[0])  # sets the scales
        method(quantized, labelled)
        recalibrate(quantized, batches)
        return quantized.eval()

    return quantize


def ldnq(**options: Any) -> Method:
    """Our own, with `options` of `RecipeConfig`."""
    recipe = fill_in(RecipeConfig(kbits=3, scale="channel", **options))

    def quantize(network: nn.Module, images: CalibrationImages, seed: int) -> nn.Module:
        mixed_precision = runtime.mixes_in_training("cpu", RuntimeConfig())
        return apply_recipe(network, images, recipe, seed, mixed_precision).student

    return quantize


METHODS: dict[str, Method] = {
    "Brevitas, nearest": brevitas(lambda model, batches: None),
    "Brevitas, GPTQ": brevitas(gptq),
    "Brevitas, GPFQ": brevitas(gpfq),
    "Brevitas, Qronos": brevitas(qronos),
    "Brevitas, learned rounding by layer": brevitas(partial(learned_rounding, blocks=False)),
    "Brevitas, learned rounding by block": brevitas(partial(learned_rounding, blocks=True)),
    "ldnq, nearest": ldnq(preset="paper", solver="nearest", training=False),
    **{f"ldnq, {preset}": ldnq(preset=preset) for preset in PRESETS},
}


@click.command()
@click.option("--model", default="resnet20", show_default=True)
@click.option("--data-root", required=True, help="The folder of CIFAR-10.")
@click.option("--checkpoint", help="Other weights than those that ship.")
@click.option("--mean", type=Triple())
@click.option("--std", type=Triple())
@click.option("--seeds", type=click.IntRange(1, len(SEEDS)), default=len(SEEDS), help="The first so many.")
def main(model: str, data_root: str, checkpoint: str | None, mean, std, seeds: int) -> None:
    """Complete the rows and write the table."""
    path = HERE / "other_tools.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    config = DataConfig("cifar10", data_root, mean=mean, std=std)
    family = resolve_dataset("cifar10", "", model)
    data = load_data(config, family)
    network = load_network(NetworkConfig(model, checkpoint=checkpoint), config, family, data.num_classes)
    fabric = runtime.start(RuntimeConfig())
    weights = Path(checkpoint).name if checkpoint else digest(model, "cifar10")

    def accuracy(module: nn.Module) -> float:
        return measure(module, data, network.preprocessing, RuntimeConfig(), fabric, "evaluating").top1

    teacher = accuracy(network.module)
    for seed in SEEDS[:seeds]:
        drawn = draw(data.train, family.name, CalibrationConfig(samples=SAMPLES, seed=seed))
        pixels, _ = in_memory(Prepared(data.train, network.preprocessing, drawn.indices))
        augmentation = Augmentation(network.preprocessing.image_size, family.flip)
        images = CalibrationImages(pixels, network.preprocessing.normalize, augmentation, 128, fabric.device)
        for name, method in METHODS.items():
            key = {"model": model, "weights": weights, "method": name, "seed": seed}
            if any(key.items() <= row.items() for row in rows):
                continue
            torch.manual_seed(seed)
            started = time.perf_counter()
            quantized = method(network.module, images, seed)
            seconds = time.perf_counter() - started
            top1 = accuracy(quantized)
            click.echo(f"{name}, seed {seed}: {teacher:.2f} to {top1:.2f} in {seconds:.0f} s")
            rows.append(
                key | {"teacher_top1": teacher, "quantized_top1": top1, "top1_drop": teacher - top1, "seconds": seconds}
            )
            write_json(path, rows)
    publish("other_tools.md", table(rows))


def table(rows: list[dict]) -> str:
    """Drop in top-1 of every method, and its time as a multiple of our fast preset's, as Markdown."""
    lines = [
        "| network | weights | method | float top-1 | quantized top-1 | drop | time | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, weights in dict.fromkeys((row["model"], row["weights"]) for row in rows):
        groups = {name: _rows_of(rows, model, weights, name) for name in METHODS}
        unit = {row["seed"]: row["seconds"] for row in groups["ldnq, fast"]}
        for name, group in groups.items():
            times = [row["seconds"] / unit[row["seed"]] for row in group if row["seed"] in unit]
            if group:
                lines.append(
                    f"| {model} | {weights} | {name} | {group[0]['teacher_top1']:.2f} "
                    f"| {spread(group, 'quantized_top1')} | {spread(group, 'top1_drop')} "
                    f"| {f'{statistics.median(times):.1f}' if times else ''} | {len(group)} |"
                )
    return "\n".join(lines) + "\n"


def _rows_of(rows: list[dict], model: str, weights: str, method: str) -> list[dict]:
    key = {"model": model, "weights": weights, "method": method}
    return [row for row in rows if key.items() <= row.items()]


if __name__ == "__main__":
    main()
