"""Device, precision, threads, processes and memory: decided here and nowhere else (by lightning-fabric)."""

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psutil
import torch
from lightning_fabric import Fabric

from ldnq.config import RuntimeConfig
from ldnq.errors import NetworkError, UsageError

# Without a workspace of its own cuBLAS adds up in any order; torch asks for this in its deterministic mode.
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
GIB = 1 << 30
# The memory of images and weights in which convolutions are fastest (benchmarks/settings.md).
LAYOUT = torch.channels_last


def start(options: RuntimeConfig, *, training: bool = False) -> Fabric:
    """The engine for one command. `auto` precision is bf16 for `training` where the processor has it, else 32."""
    if options.threads:
        torch.set_num_threads(options.threads)
    # It reports on hardware that has been decided about here.
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    accelerator, devices = _accelerator(options.device)
    mixed = options.precision == "bf16" or (training and mixes_in_training(accelerator, options))
    precision: Literal["16-mixed", "bf16-mixed", "32-true"] = "bf16-mixed" if mixed else "32-true"
    if options.precision == "16":
        if accelerator == "cpu":
            raise UsageError("expected a CUDA device for precision 16, got a CPU: use --precision bf16, or 32")
        precision = "16-mixed"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning_fabric")
        return Fabric(accelerator=accelerator, devices=devices, precision=precision)


def autocast(fabric: Fabric, options: RuntimeConfig) -> torch.autocast:
    """Mixed precision for stages that change weights as they go: nothing is remembered of weights once cast."""
    if options.precision == "16":
        raise UsageError("expected precision auto, 32 or bf16, got 16: that is for training, which scales gradients")
    mixed = options.precision == "bf16"
    return torch.autocast(fabric.device.type, torch.bfloat16, enabled=mixed, cache_enabled=False)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within the block, if `wanted`, torch computes the same bits again on the same machine. Raises `NetworkError` that
    names what it has no such algorithm for."""
    if not wanted:
        yield
        return
    mode, cudnn = torch.get_deterministic_debug_mode(), torch.backends.cudnn
    own = os.environ.get(CUBLAS)
    os.environ[CUBLAS] = own or ":4096:8"
    torch.set_deterministic_debug_mode("error")
    try:
        with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32):
            yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        message = str(error).split(". ")[0]
        raise NetworkError(f"{message}: train without --deterministic, or with --device cpu") from error
    finally:
        torch.set_deterministic_debug_mode(mode)
        if own is None:
            del os.environ[CUBLAS]


@contextmanager
def exact() -> Iterator[None]:
    """Within the block convolutions of float32 are computed in float32, also on GPUs whose tensor cores would round."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False):
        yield


def mixes_in_training(device: str, options: RuntimeConfig) -> bool:
    """Whether gradient steps on a kind of `device` run in bfloat16: by request, or where it is fast."""
    return options.precision == "bf16" or (options.precision == "auto" and _has_bf16(device))


def release_memory() -> None:
    """Give memory that was freed back to the system: the C library of Linux keeps gigabytes of it, piecemeal, for more
    tensors of the same size."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def room(max_memory: float | None, device: torch.device) -> float:
    """Bytes that may still be taken of `device`: what is left of `max_memory` GiB, or a quarter of what is free."""
    if device.type == "cuda":
        free, taken = torch.cuda.mem_get_info(device)[0], torch.cuda.memory_reserved(device)
    else:
        free, taken = psutil.virtual_memory().available, psutil.Process().memory_info().rss
    return free / 4 if max_memory is None else max_memory * GIB - taken


def environment() -> dict[str, Any]:
    """Versions and hardware that a result depends on."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return gpu | {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
    }


def devices() -> list[str]:
    """What `--device` accepts here."""
    return [
        "cpu",
        *(f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())),
    ]


def _accelerator(device: str) -> tuple[str, Any]:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu", 1
    if device == "auto" or device == "cuda" or device.startswith("cuda:"):
        if not torch.cuda.is_available():
            raise UsageError(f"device {device} is not available: torch sees no CUDA device; use --device cpu")
        index = device.removeprefix("cuda").removeprefix(":") if device != "auto" else ""
        if index and not (index.isdigit() and int(index) < torch.cuda.device_count()):
            raise UsageError(f"device {device} does not exist: torch sees {torch.cuda.device_count()} CUDA devices")
        return "cuda", [int(index or 0)]
    raise UsageError(f"expected device auto, cpu, cuda or cuda:N, got {device!r}")


def _has_bf16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()
