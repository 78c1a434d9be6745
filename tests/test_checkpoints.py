"""Files of weights in the forms that people publish, and what is said of all others."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ldnq import checkpoints
from ldnq.errors import CheckpointError


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(classes)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def state() -> dict[str, torch.Tensor]:
    return network().state_dict()


def prefixed(*prefixes: str) -> dict[str, torch.Tensor]:
    return {"".join(prefixes) + name: tensor for name, tensor in state().items()}


def assert_same(tensors, expected) -> None:
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name


FORMS = {
    "bare": state(),
    "state_dict": {"state_dict": state(), "epoch": 182, "best_prec1": 91.73},
    "model_state_dict": {"model_state_dict": state(), "lr": [0.1, 0.01]},
    "model": {"model": state(), "optimizer": {"state": {}, "param_groups": []}},
    "net": {"net": state(), "acc": 92.1, "epoch": 3},
    "nested": {"model": {"state_dict": state()}},
    "data-parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "data-parallel-in-state_dict": {"state_dict": prefixed("module.")},
    "compiled-data-parallel": prefixed("_orig_mod.", "module."),
    "lightning": {"state_dict": prefixed("model."), "epoch": 3, "global_step": 4},
}


@pytest.mark.parametrize("suffix", ["pt", "pth", "th"])
@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS)
def test_weights_are_found_in_every_usual_form(tmp_path, content, suffix):
    path = tmp_path / f"weights.{suffix}"
    torch.save(content, path)
    tensors, card = checkpoints.read(path)
    assert card == {}
    module = network().requires_grad_(False)
    for parameter in module.parameters():
        parameter.zero_()
    checkpoints.load_into(module, tensors, str(path))
    assert_same(module.state_dict(), state())


def test_files_from_before_zip_archives_are_read(tmp_path):
    torch.save(state(), tmp_path / "old.th", _use_new_zipfile_serialization=False)
    assert_same(checkpoints.read(tmp_path / "old.th")[0], state())


def test_parameters_are_as_good_as_tensors(tmp_path):
    torch.save(dict(network().named_parameters()), tmp_path / "parameters.pt")
    assert list(checkpoints.read(tmp_path / "parameters.pt")[0]) == [name for name, _ in network().named_parameters()]


def test_a_prefix_of_some_names_only_is_left(tmp_path):
    tensors = {"module.weight": torch.zeros(2), "bias": torch.zeros(2)}
    torch.save(tensors, tmp_path / "weights.pt")
    assert list(checkpoints.read(tmp_path / "weights.pt")[0]) == ["module.weight", "bias"]


@pytest.mark.parametrize("tensors", [state(), prefixed("module.")], ids=["bare", "data-parallel"])
def test_safetensors_of_others_are_read(tmp_path, tensors):
    save_file(tensors, tmp_path / "weights.safetensors", {"format": "pt"})
    found, card = checkpoints.read(tmp_path / "weights.safetensors")
    assert card == {}
    module = network().requires_grad_(False)
    for parameter in module.parameters():
        parameter.zero_()
    checkpoints.load_into(module, found, "weights.safetensors")
    assert_same(module.state_dict(), state())


def test_weights_and_card_survive_a_file_of_our_own(tmp_path):
    card = {"num_classes": 3, "preprocessing": {"image_size": 32, "mean": [0.1, 0.2, 0.3]}, "name": "é"}
    strided = state() | {"0.weight": state()["0.weight"].to(memory_format=torch.channels_last)}
    checkpoints.write(tmp_path / "new" / "weights.safetensors", strided, card)
    tensors, found = checkpoints.read(tmp_path / "new" / "weights.safetensors")
    assert found == card
    assert_same(dict(sorted(tensors.items())), dict(sorted(state().items())))
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("wrapper", ["model", "net", "module"])
def test_a_network_that_wraps_another_takes_its_own_weights_back(tmp_path, wrapper):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(wrapper, network())

    trained = Wrapped()
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    fresh = Wrapped()
    nn.init.zeros_(fresh.get_parameter(f"{wrapper}.0.weight"))
    checkpoints.load_into(fresh, checkpoints.read(tmp_path / "weights.pt")[0], "weights.pt")
    assert_same(fresh.state_dict(), trained.state_dict())


def test_weights_are_copied_into_the_network():
    module, given = network(), {name: torch.full_like(tensor, 2) for name, tensor in state().items()}
    checkpoints.load_into(module, given, "weights.pt")
    assert_same(module.state_dict(), given)


def test_the_counter_of_batches_may_be_missing():
    given = {name: t + 1 for name, t in state().items() if not name.endswith("num_batches_tracked")}
    module = network()
    checkpoints.load_into(module, given, "old.th")
    for name, tensor in given.items():
        assert torch.equal(module.state_dict()[name], tensor)


def test_half_precision_weights_become_the_networks_own_precision():
    module = network()
    checkpoints.load_into(module, {name: tensor.half() for name, tensor in state().items()}, "half.pt")
    assert module[0].weight.dtype == torch.float32


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in state().items() if key != name}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (without("1.running_var"), "missing: 1.running_var"),
        (state() | {"4.bias": torch.zeros(1)}, "unexpected: 4.bias"),
        (network(classes=5).state_dict(), "of another shape: 3.weight (5, 4) for (3, 4), 3.bias (5,) for (3,)"),
        (without("0.bias") | {"0.offset": torch.zeros(4)}, "missing: 0.bias; unexpected: 0.offset"),
    ],
    ids=["missing", "unexpected", "misshapen", "renamed"],
)
def test_weights_of_another_network_are_named(given, expected):
    module = network()
    with pytest.raises(CheckpointError) as error:
        checkpoints.load_into(module, given, "weights.pt")
    assert str(error.value) == f"weights.pt belongs to another network or number of classes: {expected}"
    assert_same(module.state_dict(), state())


def test_long_lists_of_names_are_shortened():
    given = {f"block{number}.weight": torch.zeros(1) for number in range(300)}
    with pytest.raises(CheckpointError) as error:
        checkpoints.load_into(network(), given, "weights.pt")
    message = str(error.value)
    assert "missing: 0.weight, 0.bias, 1.weight, 1.bias and 4 more" in message
    assert "block3.weight and 296 more" in message
    assert len(message) < 300


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*absent\.pt"):
        checkpoints.read(tmp_path / "absent.pt")


def truncated(legacy: bool, keep: float) -> bytes:
    buffer = io.BytesIO()
    torch.save(state(), buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()[: int(keep * len(buffer.getvalue()))]


JUNK = {
    "empty": b"",
    "zeros": bytes(1000),
    "text": b"weights\n",
    "web-page": b"<!DOCTYPE html><title>Not Found</title>",
    "numbers": b"0.93\n0.94\n",
    "large-file-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n",
    "archive": b"PK\x03\x04" + bytes(50),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "half-of-an-archive": truncated(legacy=False, keep=0.5),
    "half-of-an-old-file": truncated(legacy=True, keep=0.5),
    "most-of-an-old-file": truncated(legacy=True, keep=0.97),
}


@pytest.mark.parametrize("suffix", ["pt", "th", "safetensors"])
@pytest.mark.parametrize("content", JUNK.values(), ids=JUNK)
def test_junk_is_refused_in_one_line(tmp_path, content, suffix):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"weights\.{suffix} is not a file of weights, or is damaged") as error:
        checkpoints.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_cut_off_anywhere_is_refused_in_one_line(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        checkpoints.write(path, state(), {"num_classes": 3})
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for length in range(0, len(whole), 61):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            checkpoints.read(path)


def test_a_flipped_bit_of_a_weight_is_refused_in_one_line(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 1500] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pt is damaged: the checksum of \S+/data/0 does not match"):
        checkpoints.read(path)


@pytest.mark.parametrize(
    "content",
    [{}, [torch.zeros(1)], torch.zeros(3), {"epoch": 3}, {"state_dict": {}}, {"state_dict": 3}, {0: torch.zeros(1)}],
    ids=["nothing", "list", "tensor", "no-weights", "empty-state_dict", "number", "numbered"],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"expected a state dict in .*weights\.pt.*found none") as error:
        checkpoints.read(tmp_path / "weights.pt")
    assert "\n" not in str(error.value)


class Trap:
    """Creates a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _archive(content, path):
    torch.save(content, path)


def _old(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


def _recent_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=4))


@pytest.mark.parametrize("save", [_archive, _old, _pickle, _recent_pickle], ids=lambda f: f.__name__[1:])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, save):
    sprung, path = tmp_path / "sprung", tmp_path / "weights.pt"
    save({"state_dict": state(), "args": Trap(sprung)}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pt (holds Python objects|is not a file of weights)") as error:
        checkpoints.read(path)
    assert "\n" not in str(error.value)
    assert not sprung.exists()


def test_the_trap_of_these_tests_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "stowaway", [network(), np.float64(91.7), Path("runs")], ids=["whole-network", "numpy-number", "path"]
)
def test_python_objects_beside_the_weights_are_answered_with_what_to_do(tmp_path, stowaway):
    torch.save({"state_dict": state(), "extra": stowaway}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"holds Python objects .*: save its state_dict alone"):
        checkpoints.read(tmp_path / "weights.pt")
