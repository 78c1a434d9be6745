"""Files of quantized networks."""

from pathlib import Path

from torch import nn

from ldnq.formats import h5, onnx, safetensors
from ldnq.formats import torch as torch
from ldnq.formats.contents import Contents
from ldnq.formats.registry import Format as Format
from ldnq.formats.registry import formats as formats
from ldnq.quantized import QuantizedModel

READERS = {".safetensors": safetensors.read, ".onnx": onnx.read}


def read(path: str | Path) -> Contents:
    """Take a checkpoint apart that ldnq wrote, of the kind that its suffix says, else HDF5; nothing in it is executed.

    Raises `CheckpointError` where the file is not such a checkpoint or is damaged.
    """
    path = Path(path)
    return READERS.get(path.suffix, h5.read)(path)


def load(path: str | Path, module: nn.Module | None = None) -> QuantizedModel:
    """The network in a checkpoint that ldnq wrote, whose logits are bit for bit those of the saved one.

    `module` is a network to fill, needed where the file's network is not one that ldnq builds by name. Raises
    `CheckpointError` where the file does not fit it or cannot be read.

    >>> import ldnq, tempfile, torch
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> model = ldnq.quantize(network, [torch.rand(8, 1, 2, 2)], preset="fast")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = ldnq.save(model, f"{folder}/model.h5")
    ...     torch.equal(ldnq.load(f"{folder}/model.h5", network).module[1].weight, model.module[1].weight)
    True
    """
    return read(path).assemble(path, module)
