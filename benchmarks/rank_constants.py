"""What the model of many ranks takes from measurements: how far the steps of a run are from the fastest there is, and
what a solver asks for. Both are ratios or counts, which say something of other machines, too."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ldnq.config import CalibrationConfig, DataConfig, NetworkConfig, RecipeConfig, RunConfig, RuntimeConfig
from ldnq.network import build
from ldnq.pipeline import run
from ldnq.problem import LayerProblem, LayerSolution
from ldnq.products import Products
from ldnq.solvers import error_feedback, solvers
from ldnq.solvers.coordinate_descent import CoordinateDescent

IMAGES, REPEATS, SIDE = 4, 5, 1024
COUNTED = "counted"


@dataclass(frozen=True)
class Constants:
    """`passes` and `products` as shares of the speed of a large matrix product in float32; of coordinate descent the
    operations for every input of a layer, `launches`, and the multiply-accumulates for every row and two inputs,
    `work`, in the median of layers with the most inputs."""

    passes: float
    products: float
    launches: float
    work: float


class Operations(TorchDispatchMode):
    """Counts what a GPU would have to be asked for: all operations but those that only look at memory anew."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def measure(quick: bool) -> Constants:
    """On one thread of this machine: speeds on resnet50 at 224 pixels, operations on the last layers of resnet20."""
    torch.set_num_threads(1)
    passes, products = _speeds(1 if quick else REPEATS)
    return Constants(passes, products, *_asked(quick))


@torch.no_grad()
def _speeds(repeats: int) -> tuple[float, float]:
    network = build("resnet50", {}).to(memory_format=torch.channels_last)
    images = torch.randn(IMAGES, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    matrix = torch.randn(SIDE, SIDE)
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
    handles = [
        module.register_forward_hook(lambda *call: calls.append((call[0], call[1][0], call[2])))
        for name, module in network.named_modules()
        if name in ("layer1.1.conv2", "layer2.1.conv1", "layer2.1.conv2", "layer3.1.conv3", "layer3.1.conv2")
    ]
    network(images)
    for handle in handles:
        handle.remove()

    def products() -> None:
        for module, x, y in calls:
            found = Products(module)
            found.add(x, y)
            found.gram()

    # Of what the processor has done for it, whoever else was on it. Gram matrices count as they are found, so that only
    # the speed is compared.
    steps: dict[Callable[[], Any], list[float]] = {
        (lambda: matrix @ matrix): [],
        (lambda: network(images)): [],
        products: [],
    }
    work = [SIDE**3, *(_macs(step) for step in list(steps)[1:])]
    for _ in range(repeats):
        for step, taken in steps.items():
            begun = time.process_time()
            step()
            taken.append(time.process_time() - begun)
    fastest, passing, multiplying = (macs / median(taken) for macs, taken in zip(work, steps.values()))
    return passing / fastest, multiplying / fastest


def _macs(step: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() // 2


def _asked(quick: bool) -> tuple[float, float]:
    """Operations for an input of a layer, and multiply-accumulates for a row and two inputs."""
    found: list[tuple[int, float, float]] = []

    @dataclass(frozen=True)
    class Counted(CoordinateDescent):
        def __call__(self, problem: LayerProblem) -> LayerSolution:
            with Operations() as operations, FlopCounterMode(display=False) as counter:
                solution = super().__call__(problem)
            rows, d = problem.target.shape[1:]
            found.append((d, operations.count / d, counter.get_total_flops() / 2 / (rows * d * d)))
            return solution

    solvers.add(COUNTED, Counted)
    # In as many parts as layers of twice as many rows are rounded in.
    error_feedback.LEAST_ROWS = 8
    # Those with the most inputs are the last ones; counting takes longer than solving.
    last = ("layer3.*",) if quick else ("layer2.*",)
    recipe = RecipeConfig("fast", kbits=3, solver=COUNTED, skip=("conv1", "layer1.*", *last, "linear"))
    runtime = RuntimeConfig(device="cpu", threads=1)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        run(RunConfig(NetworkConfig("resnet20"), DataConfig("digits"), CalibrationConfig(), recipe, runtime), path)
    largest = [entry for entry in found if entry[0] == max(found)[0]]
    return median(entry[1] for entry in largest), median(entry[2] for entry in largest)
