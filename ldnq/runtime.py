"""Device, precision, threads, processes and memory: decided here and nowhere else (by lightning-fabric)."""

import ctypes
import logging
import os
import sys
import warnings
from typing import Any

import torch
from lightning_fabric import Fabric

from ldnq.config import RuntimeConfig
from ldnq.errors import UsageError


def start(options: RuntimeConfig, *, training: bool = False) -> Fabric:
    """The engine for one command. `auto` precision is bf16 for `training` where the processor has it, else 32."""
    if options.threads:
        torch.set_num_threads(options.threads)
    # It reports on hardware that has been decided about here.
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    accelerator, devices = _accelerator(options.device)
    mixed = options.precision == "bf16" or (training and mixes_in_training(accelerator, options))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning_fabric")
        return Fabric(accelerator=accelerator, devices=devices, precision="bf16-mixed" if mixed else "32-true")


def autocast(fabric: Fabric, options: RuntimeConfig) -> torch.autocast:
    """Mixed precision for stages that change weights as they go: nothing is remembered of weights once cast."""
    mixed = options.precision == "bf16"
    return torch.autocast(fabric.device.type, torch.bfloat16, enabled=mixed, cache_enabled=False)


def mixes_in_training(device: str, options: RuntimeConfig) -> bool:
    """Whether gradient steps on a kind of `device` run in bfloat16: by request, or where it is fast."""
    return options.precision == "bf16" or (options.precision == "auto" and _has_bf16(device))


def release_memory() -> None:
    """Give memory that was freed back to the system: the C library of Linux keeps gigabytes of it, piecemeal, for more
    tensors of the same size."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


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
