"""Charts as SVG that takes its colours from the page, so that it follows light and dark, and stays text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from ldnq.report import text

# As wide as a phone: there the text has the size of the page's, on a desk two stand side by side.
WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 40
# Between the frame and what is drawn.
INSET = 6
# In the style sheet, `--s0` and on; dashes help those who tell few colours apart.
COLOURS, DASHES = 8, ("", "7 3", "2 3")
# Between two labels of levels.
LABEL = 24


@dataclass(frozen=True)
class Series:
    """A line through `points` (x, y) called `label`, and `dots` (x, y, what they say); `colour` is a CSS colour,
    `dashes` an SVG dash array."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashes: str = ""
    dots: Sequence[tuple[float, float, str]] = ()


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


def lines(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    summary: str,
    log_y: bool = False,
    log_x: bool = False,
    x_ticks: Sequence[float] = (),
    rule: tuple[float, str] | None = None,
) -> Markup:
    """A line chart; `summary` says in words what it shows, `rule` is a level (y, label) to compare with."""
    xs = [x for entry in series for x, *_ in (*entry.points, *entry.dots)]
    ys = [y for entry in series for _, y, *_ in (*entry.points, *entry.dots)] + ([rule[0]] if rule else [])
    across = Axis(min(xs), max(xs), log_x) if x_ticks else Axis.over(xs, log_x)
    up = Axis.over(ys, log_y)

    def x(value: float) -> float:
        return round(LEFT + INSET + across.place(value) * (WIDTH - LEFT - RIGHT - 2 * INSET), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - INSET - up.place(value) * (HEIGHT - BOTTOM - TOP - 2 * INSET), 1)

    parts = []
    for tick in up.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks or across.ticks():
        parts.append(f'<text x="{x(tick)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(tick)}</text>')
    if rule:
        parts.append(f'<path class="rule" d="M{LEFT} {y(rule[0])}H{WIDTH - RIGHT}"/>')
        below = 13 if y(rule[0]) < TOP + 12 else -4
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{y(rule[0]) + below}" text-anchor="end">{escape(rule[1])}</text>')
    for entry in series:
        path = "L".join(f"{x(px)} {y(py)}" for px, py in entry.points)
        dashes = f' stroke-dasharray="{entry.dashes}"' if entry.dashes else ""
        title = f"<title>{escape(entry.label)}</title>"
        parts.append(f'<path class="line" style="stroke:{entry.colour}"{dashes} d="M{path}">{title}</path>')
        for px, py, said in entry.dots:
            title = f"<title>{escape(said)}</title>"
            parts.append(f'<circle style="fill:{entry.colour}" cx="{x(px)}" cy="{y(py)}" r="3">{title}</circle>')
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    return _svg(WIDTH, HEIGHT, summary, parts)


def histogram(counts: Sequence[int], reach: float, levels: Sequence[float], summary: str) -> Markup:
    """Bars of `counts` from −reach to reach with a mark at each of the `levels`."""
    width, height, foot = 180, 96, 18

    def x(value: float) -> float:
        return round((value / reach + 1) / 2 * width, 1)

    top = max(*counts, 1)
    step = width / len(counts)
    path = "".join(
        f"M{position * step:.1f} {height - foot}v-{count / top * (height - foot - 6):.1f}h{step:.2f}v"
        f"{count / top * (height - foot - 6):.1f}z"
        for position, count in enumerate(counts)
        if count
    )
    parts = [f'<path class="bars" d="{path}"/>', f'<path class="axis" d="M0 {height - foot}H{width}"/>']
    labelled, outer = {0.0} & set(levels), math.inf
    for magnitude in sorted((level for level in levels if level > 0), reverse=True):
        # Labels of inner levels would lie over each other.
        if outer - x(magnitude) >= LABEL <= x(magnitude) - x(0):
            labelled |= {magnitude, -magnitude}
            outer = x(magnitude)
    for level in levels:
        parts.append(f'<path class="level" d="M{x(level)} 2V{height - foot}"/>')
        if level in labelled:
            place = min(max(x(level), LABEL / 2 + 2), width - LABEL / 2 - 2)
            parts.append(f'<text x="{place}" y="{height - 4}" text-anchor="middle">{text.level(level)}</text>')
    return _svg(width, height, summary, parts)


def style(number: int) -> tuple[str, str]:
    """Colour and dashes of line `number`: neighbours differ in both."""
    return f"var(--s{number % COLOURS})", DASHES[number % len(DASHES)]


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


def _step(low: float, high: float) -> float:
    """1, 2 or 5 times a power of ten, four to eight of which lie between `low` and `high`."""
    rough = max((high - low) / 5, abs(high) * 1e-3, 1e-12)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * 0.8)


def _svg(width: int, height: int, summary: str, parts: Sequence[str]) -> Markup:
    label = escape(summary)
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(map(str, parts))}</svg>'
    )
