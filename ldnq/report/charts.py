"""Charts as SVG that takes its colours from the page, so that it follows light and dark, and stays text."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from ldnq.report import text
from ldnq.report.axis import Axis

# As wide as a phone: there the text has the size of the page's, on a desk two stand side by side.
WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 40
# Between the frame and what is drawn.
INSET = 6
# Height of the row below a chart that names its lines.
LEGEND = 20
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
class Frame:
    """The axes of a chart, from left to right and from below `up`."""

    across: Axis
    up: Axis

    def x(self, value: float) -> float:
        """Where `value` is from left to right."""
        return round(LEFT + INSET + self.across.place(value) * (WIDTH - LEFT - RIGHT - 2 * INSET), 1)

    def y(self, value: float) -> float:
        """Where `value` is from the top down."""
        return round(HEIGHT - BOTTOM - INSET - self.up.place(value) * (HEIGHT - BOTTOM - TOP - 2 * INSET), 1)

    def drawn(self, x_label: str, y_label: str, x_ticks: Sequence[float]) -> Iterator[str]:
        """The axes with their ticks and names."""
        for tick in self.up.ticks():
            yield f'<path class="grid" d="M{LEFT} {self.y(tick)}H{WIDTH - RIGHT}"/>'
            yield _text(LEFT - 6, self.y(tick) + 4, text.number(tick), "end")
        for tick in x_ticks:
            yield _text(self.x(tick), HEIGHT - BOTTOM + 16, text.number(tick))
        yield _text((WIDTH + LEFT) / 2, HEIGHT - 6, x_label)
        middle = (HEIGHT - BOTTOM + TOP) / 2
        yield f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'

    def rule(self, value: float, label: str) -> Iterator[str]:
        """A line at `value` from left to right, its label above it or, at the top, below."""
        y = self.y(value)
        yield f'<path class="rule" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
        yield _text(WIDTH - RIGHT, y + (13 if y < TOP + 12 else -4), label, "end")

    def curve(self, series: Series) -> Iterator[str]:
        """The line and the dots of `series`."""
        path = "L".join(f"{self.x(x)} {self.y(y)}" for x, y in series.points)
        dashes = f' stroke-dasharray="{series.dashes}"' if series.dashes else ""
        title = f"<title>{escape(series.label)}</title>"
        yield f'<path class="line" style="stroke:{series.colour}"{dashes} d="M{path}">{title}</path>'
        for x, y, said in series.dots:
            place = f'cx="{self.x(x)}" cy="{self.y(y)}" r="3"'
            yield f'<circle style="fill:{series.colour}" {place}><title>{escape(said)}</title></circle>'


def lines(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    summary: str,
    log_y: bool = False,
    x_ticks: Sequence[float] = (),
    rule: tuple[float, str] | None = None,
    legend: bool = False,
) -> Markup:
    """A line chart; `summary` says in words what it shows, `rule` is a level (y, label) to compare with; `legend`
    puts the labels of the series below."""
    places = [place for entry in series for place in (*entry.points, *((x, y) for x, y, _ in entry.dots))]
    xs, ys = ([place[axis] for place in places] for axis in (0, 1))
    ys += [rule[0]] if rule else []
    across = Axis(min(xs), max(xs)) if x_ticks else Axis.over(xs)
    frame = Frame(across, Axis.over(ys, log_y))
    parts = [*frame.drawn(x_label, y_label, x_ticks or across.ticks())]
    if rule:
        parts += frame.rule(*rule)
    for entry in series:
        parts += frame.curve(entry)
    if legend:
        parts += _legend(series)
    return _svg(WIDTH, HEIGHT + LEGEND * legend, summary, parts)


def _legend(series: Sequence[Series]) -> Iterator[str]:
    """A sample of each line and its label, side by side below the chart."""
    width = (WIDTH - LEFT - RIGHT) / len(series)
    for number, entry in enumerate(series):
        x, y = LEFT + number * width, HEIGHT + LEGEND / 2
        dashes = f' stroke-dasharray="{entry.dashes}"' if entry.dashes else ""
        yield f'<path class="line" style="stroke:{entry.colour}"{dashes} d="M{x:.1f} {y - 4}h22"/>'
        yield _text(x + 28, y, entry.label, "start")


def histogram(counts: Sequence[int], reach: float, levels: Sequence[float], summary: str) -> Markup:
    """Bars of `counts` from −reach to reach with a mark at each of the `levels`."""
    width, height, foot = 180, 96, 18

    def x(value: float) -> float:
        return round((value / reach + 1) / 2 * width, 1)

    step, unit = width / len(counts), (height - foot - 6) / max(*counts, 1)
    bars = "".join(
        f"M{position * step:.1f} {height - foot}v{-count * unit:.1f}h{step:.2f}v{count * unit:.1f}z"
        for position, count in enumerate(counts)
        if count
    )
    parts = [f'<path class="bars" d="{bars}"/>', f'<path class="axis" d="M0 {height - foot}H{width}"/>']
    parts += [f'<path class="level" d="M{x(level)} 2V{height - foot}"/>' for level in levels]
    for level in _labelled(levels, LABEL * 2 * reach / width):
        place = min(max(x(level), LABEL / 2 + 2), width - LABEL / 2 - 2)
        parts.append(_text(place, height - 4, text.level(level)))
    return _svg(width, height, summary, parts)


def _labelled(levels: Sequence[float], apart: float) -> list[float]:
    """The outermost of the `levels` and as many within as are so far `apart`; zero always, if it is one."""
    chosen, outer = {0.0} & set(levels), math.inf
    for magnitude in sorted((level for level in levels if level > 0), reverse=True):
        if outer - magnitude >= apart <= magnitude:
            chosen |= {magnitude, -magnitude}
            outer = magnitude
    return sorted(chosen)


def style(number: int) -> tuple[str, str]:
    """Colour and dashes of line `number`: neighbours differ in both."""
    return f"var(--s{number % COLOURS})", DASHES[number % len(DASHES)]


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(width: int, height: int, summary: str, parts: Sequence[str]) -> Markup:
    label = escape(summary)
    # Words that others choose, names of layers and classes, have been escaped where they became a part.
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>')  # noqa: S704
