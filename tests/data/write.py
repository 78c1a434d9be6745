"""Writes files of every kind by the ldnq at hand, and beside them the numbers that they hold: run once for a version of
a format, and committed. `tests/test_earlier_files.py` reads them ever after.

    python tests/data/write.py tests/data/version-1

`tests/data/version-1-unsealed` is what `write_hdf5` wrote with the ldnq before bc29d72, HDF5 files without a seal.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ldnq.calibration import CalibrationSet
from ldnq.codebook import Codebook
from ldnq.details import Details, LayerDetails
from ldnq.formats import formats, h5
from ldnq.graph import Layer, SkippedLayer
from ldnq.preprocessing import Preprocessing
from ldnq.quantized import LayerResult, QuantizationState, QuantizedModel, QuantizedWeight

CIRCUMSTANCES = {"weights": "abc", "configuration": {"recipe": {"kbits": 3, "skip": ["head"]}}}


def network() -> nn.Module:
    """The smallest that has a layer with a scale for each channel, one with a bias, and a batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )


def expected() -> dict[str, np.ndarray]:
    """Codes, scales, levels and tensors by their names; scales and tensors are no round numbers."""
    rng = np.random.default_rng(1)
    tensors = {name: tensor.numpy() for name, tensor in network().state_dict().items()}
    tensors = {n: (rng.random(t.shape) + 0.1).astype(t.dtype) for n, t in tensors.items()}
    tensors["1.num_batches_tracked"] = np.array(7)
    for name, levels, scales in (("0.weight", 3, 4), ("4.weight", 5, 1), ("4.bias", 11, 2)):
        shape = tensors.pop(name).shape
        tensors[f"{name}:codes"] = rng.integers(levels, size=shape, dtype=np.uint8)
        tensors[f"{name}:scale"] = (rng.random(scales) + 0.1).astype(np.float32)
        powers = 2.0 ** np.arange(levels // 2)
        tensors[f"{name}:levels"] = np.concatenate([-powers[::-1], [0], powers])
    return tensors


def filled(values: dict[str, np.ndarray]) -> QuantizedModel:
    """The network of these numbers."""
    module = network()
    names = [name.removesuffix(":codes") for name in values if name.endswith(":codes")]
    weights = {
        name: QuantizedWeight(
            torch.from_numpy(values[f"{name}:codes"]),
            torch.from_numpy(values[f"{name}:scale"]),
            Codebook(tuple(values[f"{name}:levels"].tolist())),
        )
        for name in names
    }
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if ":" not in name}
    module.load_state_dict(tensors | {name: weight.dequantize() for name, weight in weights.items()})
    preprocessing = Preprocessing(8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    return QuantizedModel(module.eval(), weights, "tiny:net", {"n": 2}, preprocessing, ("ä", "b"), {"seed": 0})


def write_hdf5(folder: Path, model: QuantizedModel) -> None:
    """`model.h5` and `calibration.h5`."""
    h5.save(model, folder / "model.h5")
    CalibrationSet(np.array([1, 5, 2**40]), "digits", "fedc", 0.25, 3, True).save(folder / "calibration.h5")


def write_details(path: Path) -> None:
    """Of a run with one layer."""
    shares, histogram = np.array([0.25, 0.5, 0.25]), np.arange(8)
    Details((LayerDetails("0", np.array([-1.0, 0, 1]), shares, histogram, 1.5, np.array([0.5, 0.25])),)).save(path)


def write_journal(path: Path, model: QuantizedModel) -> None:
    """Of a run in its second stage, of which one layer is finished."""
    from ldnq.journal import FileJournal

    journal = FileJournal(path, CIRCUMSTANCES)
    layer = Layer("0", "conv", (4, 3, 3, 3), 1, 1)
    results, skipped = [LayerResult(layer, 0.125, (0.5, 0.25), 1.5)], [SkippedLayer("x", "conv", (1, 2), "a reason")]
    state = QuantizationState(model.module, network(), dict(model.weights), results, skipped, journal=journal)
    journal.begin(1, state, torch.Generator().manual_seed(11))


def main(folder: Path) -> None:
    """Write all of them into `folder`."""
    folder.mkdir(parents=True)
    values = expected()
    model = filled(values)
    np.savez_compressed(folder / "expected.npz", **values)
    write_hdf5(folder, model)
    for name in ("safetensors", "onnx"):
        formats.get(name)().write(model, folder / f"model.{name}", torch.zeros(2, 3, 8, 8))
    write_details(folder / "details.h5")
    write_journal(folder / "journal.safetensors", model)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
