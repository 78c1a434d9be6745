import copy
import hashlib
import json
import zlib

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from ldnq import load
from ldnq.codebook import Codebook
from ldnq.errors import CheckpointError, LdnqError
from ldnq.formats import h5
from ldnq.network import build
from ldnq.preprocessing import Preprocessing
from ldnq.quantized import QuantizedModel, QuantizedWeight
from tests.formats.networks import SmallNet, quantize, small_model


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.h5"
    h5.save(model, path)
    return path


def _assert_same_bits(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.contiguous().numpy(force=True).tobytes() == expected.contiguous().numpy(force=True).tobytes()


def _assert_same_weights(found, expected):
    assert list(found) == list(expected)
    for name, weight in expected.items():
        _assert_same_bits(found[name].codes, weight.codes)
        _assert_same_bits(found[name].scale, weight.scale)
        assert found[name].codebook == weight.codebook


def _read_header(path):
    with h5py.File(path, "r") as file:
        return json.loads(zlib.decompress(file["header"][:].tobytes()))


def _write_header(path, header):
    _write_block(path, "header", np.frombuffer(zlib.compress(json.dumps(header).encode()), np.uint8))


def _write_block(path, name, block):
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = block


def _write_block_and_checksum(path, name, block):
    header = _read_header(path)
    header["sha256"][name] = hashlib.sha256(block.tobytes()).hexdigest()
    _write_block(path, name, block)
    _write_header(path, header)


def test_codes_scales_and_codebooks_come_back_bit_for_bit(model, saved):
    _assert_same_weights(load(saved, SmallNet()).weights, model.weights)


def test_everything_else_comes_back_bit_for_bit(model, saved):
    others = {name: t for name, t in model.module.state_dict().items() if name not in model.weights}
    found = h5.read(saved).tensors
    assert list(found) == list(others)
    for name, tensor in others.items():
        # numpy has no bfloat16.
        as_known = (lambda t: t.view(torch.int16)) if tensor.dtype == torch.bfloat16 else (lambda t: t)
        assert found[name].dtype == tensor.dtype
        _assert_same_bits(as_known(found[name]), as_known(tensor))


def test_negative_zero_and_numbers_that_are_none_come_back(tmp_path):
    module = nn.BatchNorm1d(4)
    module.running_mean = torch.tensor([-0.0, torch.nan, torch.inf, 1e-45])
    h5.save(QuantizedModel(module, {}), tmp_path / "model.h5")
    _assert_same_bits(load(tmp_path / "model.h5", nn.BatchNorm1d(4)).module.running_mean, module.running_mean)


def test_metadata_comes_back(tmp_path):
    preprocessing = Preprocessing(32, (0.1, 0.2, 1 / 3), (0.3, 0.2, 0.1), resize=40)
    fields = dict(
        model="mynets:small",
        model_args={"width": 6, "name": "naïve", "deep": {"list": [1, 2.5, None, True]}},
        preprocessing=preprocessing,
        class_names=("cat", "Hündchen", "猫", ""),
        provenance={"ratio": 0.01, "stages": [{"name": "layerwise", "errors": [1 / 3]}]},
    )
    h5.save(small_model(**fields), tmp_path / "model.h5")
    loaded = load(tmp_path / "model.h5", SmallNet())
    assert {name: getattr(loaded, name) for name in fields} == fields


def test_a_file_without_metadata_has_none(saved):
    loaded = load(saved, SmallNet())
    assert loaded.preprocessing is None
    assert (loaded.model, loaded.model_args, loaded.class_names, loaded.provenance) == ("", {}, (), {})


def test_logits_of_a_fresh_network_equal_those_of_the_saved_one_bit_for_bit(model, saved):
    images = torch.randn(5, 3, 9, 9)
    fresh = SmallNet().train()
    with torch.no_grad():
        expected = model.module(images)
        assert not torch.equal(copy.deepcopy(fresh).eval()(images), expected)
        loaded = load(saved, fresh)
        assert loaded.module is fresh
        _assert_same_bits(fresh(images), expected)


def test_a_network_with_a_name_is_built_and_filled(tmp_path):
    module = build("resnet20", {"num_classes": 5, "width": 2})
    model = quantize(
        module,
        {"conv1.weight": (3, "layer"), "linear.weight": (7, "channel")},
        model="resnet20",
        model_args={"num_classes": 5, "width": 2},
    )
    h5.save(model, tmp_path / "model.h5")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        _assert_same_bits(load(tmp_path / "model.h5").module(images), module(images))


def test_saving_what_was_loaded_gives_the_same_contents(model, saved, tmp_path):
    h5.save(load(saved, SmallNet()), tmp_path / "again.h5")
    assert _read_header(tmp_path / "again.h5") == _read_header(saved)


def test_a_network_without_quantized_weights_is_kept_whole(tmp_path):
    module = nn.Linear(3, 2)
    sizes = h5.save(QuantizedModel(module, {}), tmp_path / "model.h5")
    assert (sizes["codes"], sizes["scales"], sizes["tensors"]) == (0, 0, 4 * 8)
    _assert_same_bits(load(tmp_path / "model.h5", nn.Linear(3, 2)).module.weight, module.weight)


def test_the_sizes_add_up_to_the_file(model, tmp_path):
    sizes = h5.save(model, tmp_path / "model.h5")
    assert sizes["total"] == (tmp_path / "model.h5").stat().st_size
    assert sizes["codes"] + sizes["scales"] + sizes["tensors"] + sizes["overhead"] == sizes["total"]
    # 162 ternary codes, 5 a byte; 162 of 11 levels, 16 in 7 bytes; 24 and 4 of 5 levels, 24 in 7 bytes.
    assert sizes["codes"] == 33 + 77 + 7 + 7
    assert sizes["scales"] == 4 * (1 + 6 + 1 + 1)
    # Batch norms of 6 channels and a counter, a bias of 6, and the buffers.
    assert sizes["tensors"] == 2 * (4 * 6 * 4 + 8) + 6 * 4 + 3 + 5 * 2 + 8 + 0 + 6 * 4


def test_sizes_are_those_of_the_file_in_the_levels_alone(tmp_path):
    chosen = {"weight": (3, "layer")}
    sizes = h5.save(quantize(nn.Linear(500, 200, bias=False), chosen), tmp_path / "model.h5")
    assert sizes["codes"] == 20_000
    assert sizes["overhead"] < 4000


def test_codes_of_many_zeros_are_deflated_and_come_back(tmp_path):
    module = nn.Linear(500, 200, bias=False)
    codes = torch.bernoulli(torch.full((200, 500), 0.1)).to(torch.uint8) + 1
    weights = {"weight": QuantizedWeight(codes, torch.ones(1), Codebook.power_of_two(3))}
    with torch.no_grad():
        module.weight.copy_(weights["weight"].dequantize())
    sizes = h5.save(QuantizedModel(module, weights), tmp_path / "model.h5")
    assert sizes["codes"] < 0.6 * 20_000
    assert sizes["total"] == (tmp_path / "model.h5").stat().st_size < sizes["codes"] + 4000
    _assert_same_weights(load(tmp_path / "model.h5", nn.Linear(500, 200, bias=False)).weights, weights)


# Damage


def _load_or_refuse(path):
    """The contents, or None where the file is refused with the one error that it may raise."""
    try:
        return load(path, SmallNet())
    except CheckpointError:
        return None


def test_a_flipped_byte_is_refused_or_changes_nothing(model, saved):
    whole = saved.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    positions = sorted({*range(0, len(whole), 23), *range(96), *range(len(whole) - 8, len(whole))})
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= int(rng.integers(1, 256))
        saved.write_bytes(damaged)
        loaded = _load_or_refuse(saved)
        if loaded is None:
            refused += 1
            continue
        # Bytes between the parts of the file belong to nobody.
        _assert_same_weights(loaded.weights, model.weights)
        state = loaded.module.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in model.module.state_dict().items())
    assert refused > 0.3 * len(positions)


@pytest.mark.parametrize("block", ["header", "codes", "scales", "levels", "tensors"])
@pytest.mark.parametrize("place", [0, 0.5, 1], ids=["first byte", "in the middle", "last byte"])
def test_a_flipped_byte_in_a_block_is_refused(saved, block, place):
    with h5py.File(saved, "r") as file:
        start, count = file[block].id.get_offset(), file[block].id.get_storage_size()
    damaged = bytearray(saved.read_bytes())
    damaged[start + int(place * (count - 1))] ^= 0x40
    saved.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="damaged"):
        load(saved, SmallNet())


def test_a_file_cut_short_is_refused(saved):
    whole = saved.read_bytes()
    for length in [*range(1, 64, 7), *range(64, len(whole), 311), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load(saved, SmallNet())


NOT_CHECKPOINTS = {
    "empty": b"",
    "text": b"no checkpoint, but a note about one\n",
    "random bytes": np.random.default_rng(0).bytes(5000),
    "zeros": bytes(5000),
    "HDF5 signature and no more": b"\x89HDF\r\n\x1a\n",
    "HDF5 signature and random bytes": b"\x89HDF\r\n\x1a\n" + np.random.default_rng(1).bytes(5000),
}


@pytest.mark.parametrize("content", NOT_CHECKPOINTS.values(), ids=NOT_CHECKPOINTS)
def test_files_that_are_no_checkpoints_are_refused(content, tmp_path):
    (tmp_path / "model.h5").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.h5 is not a checkpoint of ldnq, or is damaged$"):
        load(tmp_path / "model.h5", SmallNet())


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_path_without_a_file_is_refused(kind, tmp_path):
    path = tmp_path if kind == "folder" else tmp_path / "model.h5"
    with pytest.raises(CheckpointError, match="no checkpoint "):
        load(path)


def _hdf5_of_something_else(file):
    file["weights"] = np.zeros(4)


def _hdf5_of_groups(file):
    for name in ("header", *h5.BLOCKS):
        file.create_group(name)


def _hdf5_of_scalars(file):
    for name in ("header", *h5.BLOCKS):
        file[name] = 1.5


def _hdf5_of_strings(file):
    for name in ("header", *h5.BLOCKS):
        file[name] = ["some", "text"]


@pytest.mark.parametrize(
    "fill",
    [_hdf5_of_something_else, _hdf5_of_groups, _hdf5_of_scalars, _hdf5_of_strings],
    ids=["something else", "groups", "scalars", "strings"],
)
def test_other_hdf5_files_are_refused(fill, tmp_path):
    with h5py.File(tmp_path / "model.h5", "w") as file:
        fill(file)
    with pytest.raises(CheckpointError):
        load(tmp_path / "model.h5", SmallNet())


def _set(*keys, value):
    def change(header):
        inner = header
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return header

    return change


def _drop(key):
    return lambda header: {name: value for name, value in header.items() if name != key}


LIES = {
    "another shape": _set("weights", 0, 1, value=[6, 3, 3, 4]),
    "no dimensions": _set("weights", 0, 1, value=[]),
    "a negative shape": _set("weights", 0, 1, value=[-6, 3, 3, 3]),
    "two negative dimensions": _set("tensors", 0, 2, value=[-2, -3]),
    "an enormous shape": _set("weights", 0, 1, value=[10**30]),
    "an enormous empty shape": _set("weights", 0, 1, value=[0, 10**30]),
    "an enormous tensor": _set("tensors", 0, 2, value=[10**12]),
    "a shape of fractions": _set("weights", 0, 1, value=[6.0, 27.0]),
    "a shape of words": _set("weights", 0, 1, value=["six", "three"]),
    "more scales than channels": _set("weights", 0, 2, value=5),
    "a codebook that is not there": _set("weights", 0, 3, value=7),
    "another codebook": _set("weights", 0, 3, value=1),
    "codebooks of a level": _set("codebooks", value=[1] * 19),
    "too few levels": _set("codebooks", value=[3]),
    "too many levels": _set("codebooks", value=[3, 11, 5, 3]),
    "an unknown dtype": _set("tensors", 0, 1, value="complex64"),
    "a dtype that is no word": _set("tensors", 0, 1, value=None),
    "a weight too few": lambda header: header | {"weights": header["weights"][1:]},
    "a tensor too few": lambda header: header | {"tensors": header["tensors"][:-2]},
    "a weight of two entries": _set("weights", 0, value=["features.0.weight", [6, 3, 3, 3]]),
    "weights that are a number": _set("weights", value=3),
    "model_args that are a number": _set("model_args", value=3),
    "class_names that are nothing": _set("class_names", value=None),
    "preprocessing of nothing": _set("preprocessing", value={"image_size": "big"}),
    "preprocessing that is a list": _set("preprocessing", value=[32]),
    "preprocessing of no deviation": _set(
        "preprocessing", value={"image_size": 32, "mean": [0, 0, 0], "std": [0, 0, 0]}
    ),
    "checksums that are a list": _set("sha256", value=["0" * 64]),
    "no checksums": _set("sha256", value={}),
    "a checksum that is a number": _set("sha256", "codes", value=0),
    "no header but a list": lambda header: [header],
    "no header but a number": lambda header: 1,
    **{
        f"no {key}": _drop(key)
        for key in ("format_version", "weights", "tensors", "codebooks", "model", "model_args", "provenance", "sha256")
    },
}


@pytest.mark.parametrize("change", LIES.values(), ids=LIES)
def test_headers_that_lie_are_refused(saved, change):
    _write_header(saved, change(_read_header(saved)))
    with pytest.raises(CheckpointError, match=r"model\.h5") as caught:
        load(saved, SmallNet())
    assert "\n" not in str(caught.value)


def test_codes_above_the_levels_are_refused_though_the_checksum_agrees(saved):
    with h5py.File(saved, "r") as file:
        codes = file["codes"][:]
    codes[0] = 250
    _write_block_and_checksum(saved, "codes", codes)
    with pytest.raises(CheckpointError, match=r"model\.h5 is damaged: .*above 3\^5"):
        load(saved, SmallNet())


@pytest.mark.parametrize("name", h5.BLOCKS)
@pytest.mark.parametrize("surplus", [-1, 1], ids=["too short", "too long"])
def test_blocks_of_another_length_are_refused_though_the_checksum_agrees(saved, name, surplus):
    with h5py.File(saved, "r") as file:
        block = file[name][:]
    _write_block_and_checksum(saved, name, np.append(block, block[:1]) if surplus > 0 else block[:-1])
    with pytest.raises(CheckpointError, match=r"model\.h5 is damaged"):
        load(saved, SmallNet())


@pytest.mark.parametrize(
    "content",
    [b"", b"not deflated", zlib.compress(b""), zlib.compress(b"{"), zlib.compress(b"\xff\xfe"), zlib.compress(b"null")],
    ids=["empty", "not deflated", "nothing", "half an object", "no text", "null"],
)
def test_headers_that_cannot_be_read_are_refused(saved, content):
    _write_block(saved, "header", np.frombuffer(content, np.uint8))
    with pytest.raises(CheckpointError):
        load(saved, SmallNet())


def test_a_header_nested_without_end_is_refused(saved):
    _write_block(saved, "header", np.frombuffer(zlib.compress(b"[" * 1_000_000), np.uint8))
    with pytest.raises(CheckpointError):
        load(saved, SmallNet())


@pytest.mark.parametrize("version", [0, 2, 99, "1", None], ids=repr)
def test_another_format_version_is_refused_by_its_number(saved, version):
    _write_header(saved, _read_header(saved) | {"format_version": version})
    with pytest.raises(CheckpointError, match=f"has format version {version}, expected 1: use a matching ldnq$"):
        load(saved, SmallNet())


# Networks


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (lambda: SmallNet(width=8), "features.0.weight, .* and 8 more differ$"),
        (lambda: nn.Linear(2, 2), "bias, features.0.weight, .* more differ$"),
        (lambda: nn.Sequential(SmallNet()), "0.features.0.weight, .* more differ$"),
    ],
    ids=["another width", "another network", "wrapped"],
)
def test_a_network_that_does_not_fit_is_refused_and_left_alone(saved, other, names):
    module = other()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(CheckpointError, match=f"does not fit the network: {names}"):
        load(saved, module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_network_with_one_parameter_more_is_refused_by_its_name(saved):
    module = SmallNet()
    module.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(CheckpointError, match=r"does not fit the network: extra differ"):
        load(saved, module)


@pytest.mark.parametrize("name", ["", "mynets:small", "os:getcwd"], ids=["no name", "a factory", "any function"])
def test_a_network_of_the_callers_own_must_be_given(tmp_path, name):
    h5.save(small_model(model=name), tmp_path / "model.h5")
    with pytest.raises(CheckpointError, match=rf"holds a network of {name or 'the caller'}: .*module=…"):
        load(tmp_path / "model.h5")
    load(tmp_path / "model.h5", SmallNet())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resnet2000", {}), ("resnet20", {"colour": 1}), ("resnet20", {"option": "Q"}), ("resnet20", {"width": -3})],
    ids=["unknown name", "unknown argument", "unknown option", "negative width"],
)
def test_a_network_that_cannot_be_built_is_refused(tmp_path, name, arguments):
    h5.save(small_model(model=name, model_args=arguments), tmp_path / "model.h5")
    with pytest.raises(LdnqError):
        load(tmp_path / "model.h5")


def test_loading_imports_no_file_that_a_checkpoint_names(tmp_path, monkeypatch):
    (tmp_path / "named_by_a_checkpoint.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    h5.save(small_model(model="named_by_a_checkpoint:make"), tmp_path / "model.h5")
    with pytest.raises(CheckpointError):
        load(tmp_path / "model.h5")
    load(tmp_path / "model.h5", SmallNet())


# Writing


@pytest.mark.parametrize("spoil", ["provenance", "state dict"])
def test_a_save_that_fails_leaves_the_old_file(saved, spoil):
    old = saved.read_bytes()
    model = small_model()
    if spoil == "provenance":
        model.provenance = {"when": object()}
    else:
        model.module.register_buffer("complex", torch.empty(3, device="meta"))
    with pytest.raises((TypeError, NotImplementedError)):
        h5.save(model, saved)
    assert saved.read_bytes() == old
    assert [path.name for path in saved.parent.iterdir()] == ["model.h5"]


def test_a_save_replaces_the_old_file_whole(saved):
    other = small_model()
    h5.save(other, str(saved))
    _assert_same_weights(load(str(saved), SmallNet()).weights, other.weights)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)], ids=["a number", "flat", "as solved"])
def test_a_scale_of_one_element_may_have_any_shape(tmp_path, shape):
    module = nn.Linear(3, 2, bias=False)
    codes = torch.tensor([[0, 1, 2], [2, 1, 0]], dtype=torch.uint8)
    weight = QuantizedWeight(codes, torch.full(shape, 0.5), Codebook.power_of_two(3))
    with torch.no_grad():
        module.weight.copy_(weight.dequantize())
    h5.save(QuantizedModel(module, {"weight": weight}), tmp_path / "model.h5")
    loaded = load(tmp_path / "model.h5", nn.Linear(3, 2, bias=False))
    _assert_same_bits(loaded.module.weight, torch.tensor([[-0.5, 0.0, 0.5], [0.5, 0.0, -0.5]]))
