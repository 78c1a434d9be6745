"""Which layers a stage takes, and which stay float."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from ldnq.errors import NetworkError, UsageError, shorten
from ldnq.graph import Layer, SkippedLayer

CUSTOMARY = "float also in the paper"


def choose_layers(
    layers: Sequence[Layer], skip: Iterable[str], ends: str = "", customary: Iterable[str] = ()
) -> tuple[list[Layer], list[SkippedLayer]]:
    """Layers to quantize, and those left out: whose names match a glob of `skip`, and the first and the last one where
    there is a reason for `ends` to stay float. So do those that match a glob of `customary`, if there are any.

    Raises `UsageError` where a glob matches nothing, `NetworkError` where no layer is left.
    """
    check_patterns("--skip", skip, layers)
    first_and_last = {layers[0].name, layers[-1].name} if layers and ends else set()
    chosen: list[Layer] = []
    left_out: list[SkippedLayer] = []
    for layer in layers:
        skipped = next((pattern for pattern in skip if fnmatchcase(layer.name, pattern)), None)
        if skipped is not None:
            left_out.append(SkippedLayer(layer.name, layer.kind, layer.shape, f"--skip {skipped}"))
        elif layer.name in first_and_last:
            left_out.append(SkippedLayer(layer.name, layer.kind, layer.shape, ends))
        elif any(fnmatchcase(layer.name, pattern) for pattern in customary):
            left_out.append(SkippedLayer(layer.name, layer.kind, layer.shape, CUSTOMARY))
        else:
            chosen.append(layer)
    if not chosen:
        reason = f"all {len(layers)} are left out" if layers else "found none"
        raise NetworkError(f"expected at least one Conv2d or Linear layer to quantize: {reason}")
    return chosen, left_out


def check_patterns(option: str, patterns: Iterable[str], layers: Sequence[Layer]) -> None:
    """Raise `UsageError` where a glob of `option` matches none of the `layers`."""
    for pattern in patterns:
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            names = [layer.name for layer in layers]
            raise UsageError(f"{option} {pattern} matches none of the layers: {shorten(names)}")
