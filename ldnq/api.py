"""The functions of the package: what the commands of the same names do, with the options of the same names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

from ldnq import measurement, pipeline
from ldnq.config import RunConfig, option_names
from ldnq.errors import UsageError
from ldnq.quantized import QuantizedModel
from ldnq.registry import unknown_name


@overload
def quantize(
    network: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]], kbits: int = ..., **options: Any
) -> QuantizedModel: ...
@overload
def quantize(network: str, *, kbits: int = ..., output: Path | str | None = ..., **options: Any) -> QuantizedModel: ...
def quantize(
    network: nn.Module | str,
    batches: Iterable[Tensor | tuple[Tensor, ...]] | None = None,
    kbits: int = 3,
    *,
    output: Path | str | None = None,
    **options: Any,
) -> QuantizedModel:
    """A quantized copy of any network, from a small sample of its inputs; or of one by name, as `ldnq quantize` does.

    Of a module, which is left as it is, `batches` yields inputs as it takes them (n, …), or tuples that start with
    them, such as a `DataLoader` gives; `options` are those of `ldnq.pipeline.quantize`. Of a name they are those of the
    command, and `output` is the folder of the run. Raises `NetworkError` where the network cannot run.

    >>> import ldnq, torch
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    >>> model = ldnq.quantize(network, [torch.rand(8, 3, 2, 2)], kbits=5, preset="fast")
    >>> model.weights["1.weight"].codebook.levels
    (-2.0, -1.0, 0.0, 1.0, 2.0)
    """
    if not isinstance(network, str):
        if batches is None or output is not None:
            raise UsageError("expected batches of inputs with a module, and no output")
        return pipeline.quantize(network, batches, kbits, **options)
    if batches is not None:
        raise UsageError(f"expected a dataset with {network}, got batches")
    config = _config(options | {"model": network, "kbits": kbits})
    return pipeline.run(config, None if output is None else Path(output)).model


def evaluate(checkpoint: Path | str | None = None, **options: Any) -> dict[str, Any]:
    """Accuracy of a quantized `checkpoint`, or of a float `model`, as `ldnq evaluate` gives it: plain values.

    >>> import ldnq
    >>> accuracy = ldnq.evaluate(model="resnet20", dataset="digits")
    >>> f"{accuracy['top1']:.0f}% of {accuracy['samples']}"
    '99% of 450'
    """
    if checkpoint is None and "model" not in options:
        raise UsageError("expected a checkpoint or a model, got neither")
    config = _config({"model": ""} | options)
    if checkpoint is None:
        return measurement.evaluate_network(config)
    return measurement.evaluate_checkpoint(Path(checkpoint), config)


def _config(options: dict[str, Any]) -> RunConfig:
    known = option_names()
    for name in options:
        if name not in known:
            raise UsageError(unknown_name("option", name, known))
    return RunConfig.from_options(options)
