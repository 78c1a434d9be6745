"""A network's quantizable layers: which there are, in which order they run, and how weights become matrices."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ldnq.errors import NetworkError, lacks_memory

KINDS = {nn.Conv2d: "conv", nn.Linear: "linear"}
# A subclass that overrides one of these does something else with its weight than the solvers assume.
METHODS = {nn.Conv2d: ("forward", "_conv_forward"), nn.Linear: ("forward",)}


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer by its dotted name in the network; `calls` is how often one pass runs it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    groups: int
    calls: int

    @property
    def weight_name(self) -> str:
        """Its weight's key in the network's state dict."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def bias_name(self) -> str:
        """Its bias's key in the network's state dict."""
        return f"{self.name}.bias" if self.name else "bias"

    def to_matrix(self, weight: Tensor) -> Tensor:
        """(out, cin/groups, kh, kw) or (out, in) to (groups, out/groups, d)."""
        return weight.reshape(self.groups, self.shape[0] // self.groups, -1)

    def to_weight(self, matrix: Tensor) -> Tensor:
        """The inverse of `to_matrix`."""
        return matrix.reshape(self.shape)


@dataclass(frozen=True)
class SkippedLayer:
    """A module with weights that stays float, and why."""

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str


@torch.no_grad()
def find_layers(module: nn.Module, example: Tensor) -> tuple[list[Layer], list[SkippedLayer]]:
    """Layers in the order in which `example`'s pass first calls them, and the modules that cannot be quantized.

    Raises `NetworkError` where the pass fails.
    """
    calls: Counter[str] = Counter()  # keeps the order of the first calls
    names = {child: name for name, child in module.named_modules()}
    hooks = [child.register_forward_pre_hook(lambda child, _: calls.update([names[child]])) for child in names]
    try:
        forward(module, example)
    finally:
        for hook in hooks:
            hook.remove()
    layers: list[Layer] = []
    skipped: list[SkippedLayer] = []
    owners: dict[nn.Parameter, str] = {}
    for name in [*calls, *(name for name in names.values() if name not in calls)]:
        child = module.get_submodule(name)
        weight = _own_matrix(child)
        if weight is None:
            continue
        if reason := _why_float(child, calls[name], owners.get(weight)):
            skipped.append(SkippedLayer(name, type(child).__name__, tuple(weight.shape), reason))
        else:
            owners[weight] = name
            layers.append(Layer(name, kind(child), tuple(weight.shape), getattr(child, "groups", 1), calls[name]))
    return layers, skipped


def forward(module: nn.Module, batch: Tensor) -> Tensor:
    """`module(batch)`; what torch says of a network that does not fit becomes one line of `NetworkError`."""
    try:
        output = module(batch)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if lacks_memory(error):
            raise
        message = " ".join(str(error).split())[:200]
        raise NetworkError(f"the network fails on a batch of shape {tuple(batch.shape)}: {message}") from error
    if not isinstance(output, Tensor):
        raise NetworkError(f"expected the network to return one tensor, got {type(output).__name__}")
    return output


class _Finished(Exception):
    """Ends a forward pass whose rest nobody needs."""


@torch.no_grad()
def run_to(module: nn.Module, name: str, batch: Tensor, number: int = 1) -> list[tuple[Tensor, Tensor]]:
    """The (input, output) of each call of the module called `name` in the pass of `batch`, which ends with call
    `number`."""
    calls: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # What follows may work in place before another call comes.
        calls.append((inputs[0], output) if number == 1 else (inputs[0].clone(), output.clone()))
        if len(calls) == number:
            raise _Finished

    handle = module.get_submodule(name).register_forward_hook(hook)
    try:
        forward(module, batch)
    except _Finished:
        pass
    finally:
        handle.remove()
    return calls


@contextmanager
def recorded(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """While inside, the outputs of the modules called `names` in the latest pass, by name."""
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> RemovableHandle:
        child = module.get_submodule(name)
        return child.register_forward_hook(lambda _, inputs, output: outputs.__setitem__(name, output))

    handles = [hook(name) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def unfold(layer: nn.Module, x: Tensor) -> Tensor:
    """The columns that `layer` multiplies its weights with: (groups, d, positions), d in the weight's order.

    `x` is (n, cin, h, w) for a convolution, (…, in) for a linear layer.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, layer.in_features).mT
    columns = F.unfold(pad(layer, x), layer.kernel_size, layer.dilation, stride=layer.stride)
    n, _, positions = columns.shape
    return columns.view(n, layer.groups, -1, positions).permute(1, 2, 0, 3).reshape(layer.groups, -1, n * positions)


def as_matrix(layer: nn.Module, y: Tensor) -> Tensor:
    """What has the shape of a layer's output, as (groups, out/groups, positions), in `unfold`'s order of positions."""
    samples = y.reshape(-1, layer.out_features) if isinstance(layer, nn.Linear) else with_samples(y).movedim(1, -1)
    # In channels-last memory nothing has to be moved.
    return samples.flatten(0, -2).unflatten(1, (getattr(layer, "groups", 1), -1)).permute(1, 2, 0)


def without_bias(layer: nn.Module, y: Tensor) -> Tensor:
    """A layer's output as it would be without its bias."""
    if layer.bias is None:
        return y
    return y - (layer.bias.view(-1, 1, 1) if isinstance(layer, nn.Conv2d) else layer.bias)


def with_samples(x: Tensor) -> Tensor:
    """A convolution also takes a single sample by itself."""
    return x.unsqueeze(0) if x.dim() == 3 else x


def pad(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """`x` with the padding of `layer` around it."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(with_samples(x), margins(layer), mode=mode)


def margins(layer: nn.Conv2d) -> list[int]:
    """Padding as `F.pad` takes it: left, right, top, bottom."""
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    if isinstance(layer.padding, str):  # "same"
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size)]
        return [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    vertical, horizontal = layer.padding
    return [horizontal, horizontal, vertical, vertical]


def _own_matrix(child: nn.Module) -> Tensor | None:
    """The first parameter of `child` itself with two or more dimensions."""
    if isinstance(child, tuple(KINDS)):
        return child.weight
    return next((p for p in child.parameters(recurse=False) if p is not None and p.dim() >= 2), None)


def kind(child: nn.Module) -> str:
    """The word for a layer of `KINDS`, for any other module its class's name."""
    return next((kind for base, kind in KINDS.items() if isinstance(child, base)), type(child).__name__)


def _why_float(child: nn.Module, calls: int, owner: str | None) -> str:
    base = next((base for base in KINDS if isinstance(child, base)), None)
    if base is None:
        return f"{type(child).__name__} is not a Conv2d or Linear layer"
    if any(getattr(type(child), method) is not getattr(base, method) for method in METHODS[base]):
        return f"{type(child).__name__} computes its output in a way of its own"
    if "weight" not in child._parameters:
        return "its weight is computed by a hook"
    if hasattr(child, "parametrizations"):
        return "its weight is computed by a parametrization"
    if owner is not None:
        return f"it shares its weight with {owner}"
    return "" if calls else "it is never called as a module in a forward pass"
