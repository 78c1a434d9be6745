"""Numbers that can be gone on with: what is not finite, and a loss that explodes, is found where it first shows."""

import math

from torch import Tensor, nn

from ldnq.errors import NetworkError, TrainingError

# No training comes back from so many times what knowing nothing would lose.
EXPLODED = 1000.0


def finite(*tensors: Tensor) -> bool:
    """Whether none of them holds NaN or infinity."""
    # The extremes tell, and are found in one pass: they are NaN where anything is.
    extremes = (extreme for tensor in tensors if tensor.numel() for extreme in tensor.detach().aminmax())
    return all(map(math.isfinite, extremes))


def first_unsound(module: nn.Module) -> str | None:
    """The first weight or statistic of `module` that is not finite."""
    return next((name for name, tensor in module.state_dict().items() if not finite(tensor)), None)


def check_weights(module: nn.Module) -> None:
    """Raise `NetworkError` where a weight or statistic of `module` is not finite."""
    if name := first_unsound(module):
        raise NetworkError(f"expected finite weights, found NaN or infinity in {name}: use another checkpoint")


def unusable(place: str) -> NetworkError:
    """The error of values at `place` whose squares are not finite in single precision."""
    return NetworkError(
        f"expected values under 1e19 on the calibration images, found NaN, infinity or more at {place}: check these "
        "images, their preprocessing and the network's weights"
    )


class LossWatch:
    """Lets the losses of a training pass, but for the first that is not finite, or `EXPLODED` times what it began with
    and what a `guess` would lose: that raises `TrainingError`."""

    def __init__(self, guess: float = 1.0) -> None:
        self.guess = guess
        self.limit: float | None = None

    def __call__(self, loss: Tensor, step: str) -> float:
        """`loss` as a number; `step` says when it was."""
        value = loss.item()
        self.limit = self.limit or EXPLODED * max(value, self.guess)
        if not value <= self.limit < float("inf"):
            raise TrainingError(f"the loss is {value:.3g} at {step}")
        return value
