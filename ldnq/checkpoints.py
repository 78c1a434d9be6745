"""Files of float weights, as people publish them."""

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ldnq.errors import CheckpointError, shorten
from ldnq.files import replacing

# Where training scripts put the state dict, and what wrappers put before every key.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in `path` and the model card beside it (empty in files that ldnq did not write).

    Nothing in the file is executed. Raises `CheckpointError` where there is no state dict to be found.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: expected a file of weights (.safetensors, .pt, .pth, .th)")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on the pickle protocol of files that it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files make torch fail in many ways
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise CheckpointError(
                f"{path} holds Python objects beside tensors and is not opened: save its state_dict alone"
            ) from error
        raise CheckpointError(f"{path} is not a file of weights, or is damaged") from error
    return _unwrap(content, path), {}


def write(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write a safetensors file with the model `card` in its header."""
    write_safetensors(path, tensors, {"ldnq": json.dumps(card)})


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; tensors may have any layout and share memory."""
    with replacing(path) as temporary:
        # save_file would make a file that only its owner may read.
        copies = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
        temporary.write_bytes(safetensors.torch.save(copies, dict(metadata)))


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy `tensors` into `module`; raises `CheckpointError` that names what is missing, unexpected or misshapen."""
    own = module.state_dict()
    tensors = without_prefixes(tensors, module)
    given = {name: tensor for name, tensor in tensors.items() if name in own}
    # Files from before PyTorch 0.4.1 lack this counter, which inference never reads.
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    misshapen = [
        f"{name} {tuple(tensor.shape)} for {tuple(own[name].shape)}"
        for name, tensor in given.items()
        if tensor.shape != own[name].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(found.values()):
        parts = "; ".join(f"{what}: {shorten(names)}" for what, names in found.items() if names)
        raise CheckpointError(f"{source} belongs to another network or number of classes: {parts}")
    module.load_state_dict(own | given)


def without_prefixes(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """`tensors` without what wrappers put before every name, unless `module` has such names itself."""
    own = module.state_dict().keys()
    while not own & tensors.keys():
        prefix = next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _check_archive(path: Path) -> None:
    """Raise `CheckpointError` where a part of torch's zip archive is not what was written; torch does not look."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not match")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        card = json.loads((file.metadata() or {}).get("ldnq", "{}"))
        return {name: file.get_tensor(name) for name in file.keys()}, card  # noqa: SIM118, not a dict


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping) and not _is_state_dict(content):
        inner = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
        content = content[inner] if inner else None
    if content is None or not isinstance(content, Mapping):
        raise CheckpointError(f"expected a state dict in {path}, or one under {', '.join(CONTAINERS)}, found none")
    return dict(content)


def _is_state_dict(content: Mapping) -> bool:
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
