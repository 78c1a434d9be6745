"""An axis of a chart: where values are, and which are written beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, spread over a length, in powers of ten if `log`: then all are above zero."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], log: bool = False) -> "Axis":
        """An axis that ends in round numbers around `values`."""
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
            # A little more on both sides: nothing lies on the frame.
            return cls(10 ** (math.floor(low * 20 - 0.5) / 20), 10 ** (math.ceil(high * 20 + 0.5) / 20), True)
        step = _step(low, high)
        return cls(step * math.floor(low / step), step * math.ceil(high / step))

    def place(self, value: float) -> float:
        """Where `value` is, from 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = map(math.log10, (value, low, high))
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[float]:
        """Round values on the axis, three to eight where it can be."""
        if not self.log:
            step = _step(self.low, self.high)
            return [step * n for n in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
            found = [d * 10.0**n for n in decades for d in digits if self.low <= d * 10.0**n <= self.high]
            if len(found) >= 3:
                break
        return found[:: math.ceil(len(found) / 8)]


def _step(low: float, high: float) -> float:
    """1, 2 or 5 times a power of ten, four to eight of which lie between `low` and `high`."""
    rough = max((high - low) / 5, abs(high) * 1e-3, 1e-12)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * 0.8)
