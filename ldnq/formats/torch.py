"""Files that PyTorch runs without ldnq."""

import copy
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ldnq.errors import NetworkError, UsageError
from ldnq.files import replacing
from ldnq.formats.registry import Format, Opened, formats
from ldnq.quantized import QuantizedModel


@formats.register("torch")
@dataclass(frozen=True)
class TorchStateDict(Format):
    """The plain float state dict, for `torch.load(FILE, weights_only=True)` and the network's own `load_state_dict`."""

    suffix: ClassVar[str] = ".pt"

    def write(self, model: QuantizedModel, path: Path, example: Tensor) -> None:
        """Write the state dict to `path`; raises `UsageError` where it would fit no network."""
        refuse_folded(model)
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in model.module.state_dict().items()
        }
        with replacing(path) as temporary:
            torch.save(tensors, temporary)

    def open(self, path: Path, model: QuantizedModel) -> Opened:
        """The file in a copy of the network."""
        return filled(model, torch.load(path, weights_only=True))


@formats.register("torch-export")
@dataclass(frozen=True)
class TorchExport(Format):
    """A graph with its weights, for `torch.export.load(FILE).module()`: runs without the network's code."""

    suffix: ClassVar[str] = ".pt2"

    def write(self, model: QuantizedModel, path: Path, example: Tensor) -> None:
        """Write the exported program to `path`; batches may have any size."""
        archive = io.BytesIO()
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of torch about its own deprecations
                batch = {0: torch.export.Dim("batch")}
                torch.export.save(torch.export.export(model.module, (example,), dynamic_shapes=(batch,)), archive)
        except Exception as error:  # whatever a forward pass does that torch.export cannot follow
            message = " ".join(str(error).split())[:200]
            raise NetworkError(f"torch.export cannot export the network: {message}") from error
        with replacing(path) as temporary:
            temporary.write_bytes(archive.getvalue())

    def open(self, path: Path, model: QuantizedModel) -> Opened:
        """The file as torch runs it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(path.read_bytes()))
        return Opened(dict(program.state_dict), program.module())


def refuse_folded(model: QuantizedModel) -> None:
    """Raise `UsageError` where a state dict would have biases that the network does not know."""
    if model.folded:
        raise UsageError("batch norms are folded, so that a state dict fits no network: use --format torch-export")


def filled(model: QuantizedModel, tensors: dict[str, Tensor]) -> Opened:
    """A float state dict in a copy of the network, whose own values are overwritten."""
    module: nn.Module = copy.deepcopy(model.module)
    module.load_state_dict(tensors)
    return Opened({name: tensors[name] for name in model.weights}, module)
