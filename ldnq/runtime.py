"""Device, precision, threads, processes and memory: decided here and nowhere else (by lightning-fabric)."""

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import psutil
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from ldnq import ranks
from ldnq.config import RuntimeConfig
from ldnq.errors import NetworkError, UsageError
from ldnq.heartbeat import Heartbeat

# Without a workspace of its own cuBLAS adds up in any order; torch asks for this in its deterministic mode.
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
GIB = 1 << 30
# The memory of images and weights in which convolutions are fastest (benchmarks/settings.md), and the products of their
# windows.
LAYOUT = torch.channels_last


@contextmanager
def together(options: RuntimeConfig) -> Iterator[None]:
    """Within the block the processes that torchrun or srun has started work together; when one fails all end.

    Raises `UsageError` where there are others than `options` say, or where they cannot reach each other.
    """
    several = ranks.started() > 1 or options.strategy == "ddp" or (options.devices or 1) * (options.num_nodes or 1) > 1
    if ranks.size() == 1 and several:
        fabric = start(options, joining=True)
        # On the first host the first process cannot say that it is gone itself.
        speaks = fabric.local_rank == (1 if fabric.node_rank == 0 else 0)
        ranks.join(fabric.world_size, Heartbeat(fabric.global_rank, fabric.world_size, options.timeout, speaks))
        yield
        ranks.part()
    else:
        yield


def start(options: RuntimeConfig, *, training: bool = False, joining: bool = False) -> Fabric:
    """The engine for one command, or of a process `joining` others. `auto` precision is bf16 for `training` where the
    processor has it, else 32."""
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
        if joining or ranks.size() > 1:
            fabric = _launched(accelerator, precision, options)
        else:
            fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)
    if options.threads:
        torch.set_num_threads(options.threads)
    return fabric


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
    """Bytes that this process may still take of `device`: what is left of `max_memory` GiB, or its share of a quarter
    of what is free."""
    if device.type == "cuda":
        free, taken = torch.cuda.mem_get_info(device)[0], torch.cuda.memory_reserved(device)
    else:
        free, taken = psutil.virtual_memory().available, psutil.Process().memory_info().rss
    # Whoever starts several processes on a host says how many.
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if device.type == "cpu" else 1
    return free / 4 / here if max_memory is None else max_memory * GIB - taken


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


def _launched(accelerator: str, precision: Any, options: RuntimeConfig) -> Fabric:
    per_node, nodes = _processes(options)
    if ":" in options.device:
        raise UsageError(f"expected device auto, cpu or cuda with several processes, got {options.device}")
    # Whether the others are alive their heartbeats tell: whoever waits for them may wait for long.
    backend = "cpu:gloo,cuda:nccl" if accelerator == "cuda" else "gloo"
    strategy = DDPStrategy(timeout=timedelta(days=7), process_group_backend=backend)
    fabric = Fabric(accelerator=accelerator, devices=per_node, num_nodes=nodes, precision=precision, strategy=strategy)
    try:
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        what = " ".join(str(error).split())
        raise UsageError(f"cannot join the other processes of the run at {place}: {what}") from error
    return fabric


def _processes(options: RuntimeConfig) -> tuple[int, int]:
    """On each host, and hosts."""
    started = ranks.started()
    variable = "LOCAL_WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_NTASKS_PER_NODE"
    per_node = int(os.environ.get(variable, started)) if started > 1 else 1
    nodes = started // per_node
    for name, wanted, found in (("devices", options.devices, per_node), ("num-nodes", options.num_nodes, nodes)):
        if wanted not in (None, 1, found) and started == 1:
            raise UsageError(
                f"expected --{name} 1, where one process was started, got {wanted}: start them by torchrun"
            )
        if wanted not in (None, found):
            raise UsageError(f"expected --{name} {found}, as many as were started, got {wanted}: leave it out")
    return per_node, nodes


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
