"""Values as a reader would say them: the filters of the templates."""

import math
from collections.abc import Iterable, Iterator

# Of negative and positive levels, red, green and blue, in light and in dark.
NEGATIVE, POSITIVE, ZERO = "217 119 6", "37 99 235", "148 158 170"


def plain(value: object) -> str:
    """A setting."""
    if value is None or value in ((), [], {}, ""):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={plain(entry)}" for name, entry in value.items())
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def decibels(relative_error: float) -> str:
    """The signal to quantization noise ratio of a relative error."""
    return f"{-10 * math.log10(relative_error):.1f}" if relative_error > 0 else "∞"


def signed(value: float) -> str:
    """A change, to two digits.

    >>> signed(-0.222), signed(1.5)
    ('−0.22', '+1.50')
    """
    return f"{value:+.2f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours.

    >>> duration(4.25), duration(125), duration(7260)
    ('4.2 s', '2 min 5 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def level(value: float) -> str:
    """A level in units of the scale.

    >>> [level(value) for value in (-2.0, -1.0, 0.0, 1.0, 16.0)]
    ['−2α', '−α', '0', 'α', '16α']
    """
    if value == 0:
        return "0"
    return f"{'−' if value < 0 else ''}{'' if abs(value) == 1 else f'{abs(value):g}'}α"


def level_colours(levels: Iterable[float]) -> Iterator[str]:
    """A CSS colour for each of the levels, fuller the further it is from zero."""
    levels = list(levels)
    magnitudes = sorted({abs(value) for value in levels if value})
    for value in levels:
        strength = 0.3 + 0.7 * (magnitudes.index(abs(value)) + 1) / len(magnitudes) if value else 0.35
        yield f"rgb({ZERO if value == 0 else POSITIVE if value > 0 else NEGATIVE} / {strength:.2f})"


def number(value: float) -> str:
    """A short text for `value`."""
    if value == 0:
        return "0"
    if abs(value) >= 1000 or abs(value) < 1e-3:
        for unit, name in ((1e6, "M"), (1e3, "k")):
            if abs(value) >= unit:
                return f"{value / unit:.3g}{name}"
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}"
