import pytest
import torch

from ldnq import runtime
from ldnq.config import RuntimeConfig
from ldnq.errors import UsageError


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


@pytest.mark.gpu
def test_auto_takes_the_gpu():
    assert runtime.start(RuntimeConfig()).device.type == "cuda"
