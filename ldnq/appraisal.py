"""Complexity as a user asks for it: of a network by name, of a checkpoint or of a run's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import fx

from ldnq import checkpoints, formats
from ldnq.complexity import LayerComplexity, complexity
from ldnq.errors import UsageError
from ldnq.models import models
from ldnq.network import build, find_family
from ldnq.quantized import QuantizedModel
from ldnq.quantizers.activations import input_grid
from ldnq.quantizers.inputs import find_inputs


def complexity_of(
    target: str,
    model_args: Mapping[str, Any] = {},
    num_classes: int | None = None,
    image_size: int | None = None,
    own: str | None = None,
) -> list[LayerComplexity]:
    """Of a network by name, of that of a checkpoint or run's folder, or of that whose weights `ldnq train` wrote.

    `own` is the factory of a network that a file does not know by name. Raises `UsageError` where nothing says the
    size of an image.
    """
    arguments = dict(model_args) | ({"num_classes": num_classes} if num_classes else {})
    path = Path(target)
    if target in models or not (path.exists() or path.suffix in (".h5", *formats.READERS)):
        if own:
            raise UsageError(f"expected a checkpoint with --model, got the network {target}")
        return _by_name(target, arguments, image_size)
    if path.is_dir() and not (path / "model.h5").exists():
        # A run of 'ldnq train' has its weights alone.
        path = next(path.glob("*.safetensors"), path)
    if path.suffix == ".safetensors" and "model" in (card := checkpoints.read(path)[1]):
        if ":" in card["model"] and not own:  # a file never decides what code is run
            raise UsageError(f"{path} holds weights of {card['model']}: give it by --model")
        size = image_size or card.get("preprocessing", {}).get("image_size")
        return _by_name(own or card["model"], card["model_args"] | arguments, size)
    contents = formats.read(path / "model.h5" if path.is_dir() else path)
    module = build(own, arguments or contents.model_args) if own else None
    size = image_size or (contents.preprocessing.image_size if contents.preprocessing else 0)
    return quantized_complexity(contents.assemble(path, module), _known(size, target))


def quantized_complexity(model: QuantizedModel, image_size: int) -> list[LayerComplexity]:
    """`complexity` with the bits of the model's weights, and of what its layers' inputs are rounded to; of
    several widths the widest."""
    model = model.widest()
    weight_bits = {
        name.removesuffix("weight").removesuffix("."): weight.codebook.bits
        for name, weight in model.weights.items()
        if name.endswith("weight")
    }
    traced = model.module if isinstance(model.module, fx.GraphModule) else None
    grids = {name: input_grid(traced, name) for name in weight_bits} if traced else {}
    activation_bits = {name: float(grid.bits) for name, grid in grids.items() if grid}
    activation_bits |= {name: float(inputs.bits) for name, inputs in find_inputs(model.module).items()}
    return complexity(model.module, image_size, weight_bits, activation_bits)


def _by_name(model: str, arguments: Mapping[str, Any], image_size: int | None) -> list[LayerComplexity]:
    return complexity(build(model, arguments), _known(image_size or find_family(model).image_size, model))


def _known(image_size: int, target: str) -> int:
    if not image_size:
        raise UsageError(f"expected --image-size for {target}, which does not say its own")
    return image_size
