"""Files that earlier versions of ldnq wrote, `tests/data/write.py` says how, hold the same bits ever after; files of
later versions are refused."""

import importlib.util
import json
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ldnq import formats, hdf5
from ldnq.calibration import CalibrationSet
from ldnq.details import Details
from ldnq.errors import LdnqError
from ldnq.graph import Layer, SkippedLayer
from ldnq.journal import FileJournal
from ldnq.quantized import LayerResult, QuantizationState

DATA = Path(__file__).parent / "data"
MODELS = sorted(path for path in DATA.glob("*/model.*"))
CALIBRATIONS, DETAILS, JOURNALS = (sorted(DATA.glob(f"*/{kind}.*")) for kind in ("calibration", "details", "journal"))


def _id(path):
    return path.relative_to(DATA).as_posix()


def _write():
    """The script that wrote them."""
    spec = importlib.util.spec_from_file_location("write", DATA / "write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _expected(path):
    with np.load(path.with_name("expected.npz")) as values:
        return dict(values)


def _same(found, expected):
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def _same_weights(found, expected):
    assert {f"{name}:codes" for name in found} == {name for name in expected if name.endswith(":codes")}
    for name, weight in found.items():
        assert _same(weight.codes.numpy(), expected[f"{name}:codes"])
        assert _same(weight.scale.numpy(), expected[f"{name}:scale"])
        assert weight.codebook.levels == tuple(expected[f"{name}:levels"])
    return True


def test_there_is_a_file_of_every_format():
    assert {_id(path) for path in (*MODELS, *CALIBRATIONS, *DETAILS, *JOURNALS)} >= {
        f"version-1{name}"
        for name in (
            "/model.h5", "/model.safetensors", "/model.onnx", "/calibration.h5", "/details.h5", "/journal.safetensors",
            "-unsealed/model.h5", "-unsealed/calibration.h5",
        )
    }  # fmt: skip
    assert all((b"ldnqseal" in path.read_bytes()) != ("unsealed" in _id(path)) for path in DATA.glob("*/*.h5"))


@pytest.mark.parametrize("path", MODELS, ids=_id)
def test_a_checkpoint_holds_the_same_bits(path):
    contents, expected = formats.read(path), _expected(path)
    assert _same_weights(contents.weights, expected)
    assert contents.tensors.keys() == {name for name in expected if ":" not in name}
    assert all(_same(tensor.numpy(), expected[name]) for name, tensor in contents.tensors.items())
    assert (contents.model, contents.model_args) == ("tiny:net", {"n": 2})
    shown = contents.preprocessing
    assert (shown.image_size, shown.mean, shown.std) == (8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (contents.class_names, contents.provenance) == (("ä", "b"), {"seed": 0})
    module = formats.load(path, _write().network()).module
    dequantized = expected["0.weight:levels"][expected["0.weight:codes"]].astype(np.float32)
    assert _same(module[0].weight.detach().numpy(), expected["0.weight:scale"].reshape(4, 1, 1, 1) * dequantized)


@pytest.mark.parametrize("path", CALIBRATIONS, ids=_id)
def test_a_calibration_set_holds_the_same_indices(path):
    drawn = CalibrationSet.load(path)
    assert drawn.indices.tolist() == [1, 5, 2**40]
    assert (drawn.dataset, drawn.fingerprint, drawn.ratio, drawn.seed, drawn.stratified) == (
        "digits", "fedc", 0.25, 3, True,
    )  # fmt: skip


@pytest.mark.parametrize("path", DETAILS, ids=_id)
def test_details_of_a_run_are_the_same(path):
    details = Details.load(path)
    (layer,) = details.layers
    assert (layer.name, layer.reach, details.outcomes) == ("0", 1.5, None)
    assert [values.tolist() for values in (layer.levels, layer.shares, layer.histogram, layer.errors)] == [
        [-1, 0, 1], [0.25, 0.5, 0.25], list(range(8)), [0.5, 0.25],
    ]  # fmt: skip


@pytest.mark.parametrize("path", JOURNALS, ids=_id)
def test_a_run_goes_on_from_the_same_state(path):
    write, expected = _write(), _expected(path)
    state, generator = QuantizationState(write.network(), write.network()), torch.Generator()
    assert FileJournal(path, write.CIRCUMSTANCES).restore(state, generator) == 1
    assert generator.initial_seed() == 11
    assert _same_weights(state.weights, expected)
    student = state.student.state_dict()
    assert all(_same(student[name].numpy(), value) for name, value in expected.items() if ":" not in name)
    layer = Layer("0", "conv", (4, 3, 3, 3), 1, 1)
    assert state.results == [LayerResult(layer, 0.125, (0.5, 0.25), 1.5)]
    assert state.skipped == [SkippedLayer("x", "conv", (1, 2), "a reason")]


def _later_checkpoint(source, path):
    """The header is a dataset of its own; its checksums are of the others."""
    with hdf5.opened(source) as file:
        blocks = {name: values[:] for name, values in file.items()}
    header = json.loads(zlib.decompress(blocks["header"].tobytes())) | {"format_version": 99}
    blocks["header"] = np.frombuffer(zlib.compress(json.dumps(header).encode()), np.uint8)
    with hdf5.created(path) as file:
        for name, values in blocks.items():
            file[name] = values


def _later_attribute(source, path):
    path.write_bytes(source.read_bytes().partition(hdf5.SEAL)[0])
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99


def _later_safetensors(source, path):
    with safe_open(source, "pt") as file:
        ((key, entry),) = file.metadata().items()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {key: json.dumps(json.loads(entry) | {"format_version": 99})})


def _later_onnx(source, path):
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(source)
    (entry,) = proto.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | {"format_version": 99})
    onnx.save(proto, path)


def _resume(path):
    write = _write()
    return FileJournal(path, write.CIRCUMSTANCES).restore(
        QuantizationState(write.network(), write.network()), torch.Generator()
    )


VERSION = "has format version 99, expected 1: use a matching ldnq"
LATER = {
    "version-1/model.h5": (_later_checkpoint, formats.read, VERSION),
    "version-1/model.safetensors": (_later_safetensors, formats.read, VERSION),
    "version-1/model.onnx": (_later_onnx, formats.read, VERSION),
    "version-1/calibration.h5": (_later_attribute, CalibrationSet.load, "has format 99, expected 1"),
    "version-1/details.h5": (_later_attribute, Details.load, "has format 99, expected 1"),
    "version-1/journal.safetensors": (_later_safetensors, _resume, "was written by another version of ldnq"),
}


@pytest.mark.parametrize("name", LATER)
def test_a_file_of_a_later_version_is_refused(name, tmp_path):
    change, read, said = LATER[name]
    path = tmp_path / Path(name).name
    change(DATA / name, path)
    with pytest.raises(LdnqError) as refused:
        read(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
