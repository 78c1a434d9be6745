import os

import psutil
import pytest
import torch

from ldnq import runtime
from ldnq.config import RuntimeConfig
from ldnq.errors import NetworkError, UsageError


def _product_dtype(fabric):
    with fabric.autocast():
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_networks_run_in_float32_unless_asked_otherwise():
    assert _product_dtype(runtime.start(RuntimeConfig(device="cpu"))) == torch.float32
    assert _product_dtype(runtime.start(RuntimeConfig(device="cpu", precision="bf16"))) == torch.bfloat16


def test_training_takes_bfloat16_where_the_processor_has_it():
    expected = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    assert _product_dtype(runtime.start(RuntimeConfig(device="cpu"), training=True)) == expected
    assert _product_dtype(runtime.start(RuntimeConfig(device="cpu", precision="32"), training=True)) == torch.float32


@pytest.mark.parametrize(("precision", "mixed"), [("32", False), ("bf16", True)])
def test_gradient_steps_run_in_the_precision_asked_for(precision, mixed):
    assert runtime.mixes_in_training("cpu", RuntimeConfig(precision=precision)) == mixed


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:99", "gpu"])
def test_devices_that_are_not_there_are_refused_in_one_line(device):
    with pytest.raises(UsageError) as error:
        runtime.start(RuntimeConfig(device=device))
    assert "\n" not in str(error.value)


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        runtime.start(RuntimeConfig(device="cpu", threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_room_is_what_a_limit_leaves_or_a_quarter_of_what_is_free():
    cpu = torch.device("cpu")
    held, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    assert runtime.room(3.0, cpu) == pytest.approx(3 * 2**30 - held, abs=2**28)
    assert runtime.room(None, cpu) == pytest.approx(free / 4, rel=0.5)


@pytest.mark.gpu
def test_auto_takes_the_gpu():
    assert runtime.start(RuntimeConfig()).device.type == "cuda"


def test_sixteen_bits_need_a_gpu_and_are_not_for_quantizing():
    with pytest.raises(UsageError, match="expected a CUDA device for precision 16, got a CPU: use --precision bf16"):
        runtime.start(RuntimeConfig(device="cpu", precision="16"), training=True)
    with pytest.raises(UsageError, match="expected precision auto, 32 or bf16, got 16"):
        runtime.autocast(runtime.start(RuntimeConfig(device="cpu")), RuntimeConfig(precision="16"))


def _settings():
    cudnn = torch.backends.cudnn
    return (
        torch.get_deterministic_debug_mode(), cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )  # fmt: skip


def test_what_is_deterministic_ends_with_the_block():
    before = _settings()
    with runtime.deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert _settings() == before
    with runtime.deterministic(False):
        assert _settings() == before


def test_what_cannot_be_deterministic_is_named():
    before = _settings()
    expected = r"^put_ does not have a deterministic .*: train without --deterministic"
    with pytest.raises(NetworkError, match=expected) as error, runtime.deterministic(True):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert "\n" not in str(error.value)
    assert _settings() == before
    with pytest.raises(RuntimeError, match="something else"), runtime.deterministic(True):
        raise RuntimeError("something else")


@pytest.mark.gpu
def test_sixteen_bits_scale_the_loss_on_a_gpu():
    fabric = runtime.start(RuntimeConfig(device="cuda", precision="16"), training=True)
    assert fabric.strategy.precision.state_dict()["scale"] > 1
