"""A deeper CIFAR ResNet that computes what a trained shallower one does: a start that needs fewer epochs.

    python pretrained/deepen.py pretrained/resnet20-cifar10.safetensors resnet32 results/resnet32-init.safetensors

Every new block copies the one before it, but adds nothing to its input: the scale and the offset of its last batch norm
are zero (Chen, Goodfellow and Shlens, "Net2Net", ICLR 2016, section 2.3, with the residual branch as the new layer).
"""

from pathlib import Path

import click
from torch import Tensor

from ldnq import checkpoints
from ldnq.errors import CheckpointError
from ldnq.network import build

STAGES = ("layer1", "layer2", "layer3")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
def main(file: Path, model: str, output: Path) -> None:
    """Write to OUTPUT the weights of MODEL that compute what those in FILE do."""
    tensors, card = checkpoints.read(file)
    module = build(model, card["model_args"])
    deeper = {name: tensor for name, tensor in tensors.items() if not name.startswith(STAGES)}
    for stage in STAGES:
        deeper |= deepen(tensors, stage, len(module.get_submodule(stage)))
    checkpoints.load_into(module, deeper, str(file))
    checkpoints.write(output, module.state_dict(), card | {"model": model, "command": f"deepen {file.name}"})


def deepen(tensors: dict[str, Tensor], stage: str, blocks: int) -> dict[str, Tensor]:
    """The tensors of `stage` with silent copies spread over all blocks but the first, which may change the width."""
    given = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith(f"{stage}."))
    if blocks < given:
        raise CheckpointError(f"expected a network of at least {given} blocks a stage, got {blocks}")
    deeper, previous = {}, None
    for new in range(blocks):
        source = 0 if new == 0 else 1 + (new - 1) * (given - 1) // (blocks - 1)
        for name in [name for name in tensors if name.startswith(f"{stage}.{source}.")]:
            part = name.split(".", 2)[2]
            silent = source == previous and part in ("bn2.weight", "bn2.bias")
            deeper[f"{stage}.{new}.{part}"] = tensors[name] * (not silent)
        previous = source
    return deeper


if __name__ == "__main__":
    main()
