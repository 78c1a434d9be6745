"""Charts are well-formed SVG that puts values where they belong."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from ldnq.report import charts, text
from ldnq.report.axis import Axis


def _tags(svg, tag, kind=None):
    found = [element for element in ElementTree.fromstring(svg).iter() if element.tag == tag]
    return [element for element in found if kind is None or element.get("class") == kind]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (86.5, 99.1), (-3, 17), (0.0003, 0.0011), (63.08, 68.16), (5, 5), (0, 0), (1e4, 3e6)]
)
def test_axes_end_around_the_values_and_have_a_handful_of_ticks(low, high):
    axis = Axis.over([low, high])
    assert axis.low <= low <= high <= axis.high
    assert 1 <= len(axis.ticks()) <= 11
    assert all(axis.low - 1e-9 * abs(high) <= tick <= axis.high + 1e-9 * abs(high) for tick in axis.ticks())


@pytest.mark.parametrize("values", [(0.001, 0.1), (0.9, 1), (0.5, 0.5), (1e-12, 1), (0.02, 0.4)])
def test_logarithmic_axes_too(values):
    axis = Axis.over(values, log=True)
    assert axis.low < min(values) <= max(values) < axis.high
    assert 1 <= len(axis.ticks()) <= 8
    middle = (axis.low * axis.high) ** 0.5
    assert axis.place(middle) == pytest.approx(0.5)


def test_points_are_where_their_values_are():
    points = [(0, 10), (5, 20), (10, 40)]
    dots = [(*point, f"<{point[1]}>") for point in points]
    svg = charts.lines([charts.Series("a & b", points, "red", dots=dots)], "x", "y", 'said "so"')
    places = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in _tags(svg, "circle")]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert (y1 - y2) == pytest.approx(2 * (y0 - y1), abs=0.2)
    assert [title.text for title in _tags(svg, "title")] == ["a & b", "<10>", "<20>", "<40>"]
    root = ElementTree.fromstring(svg)
    assert (root.get("role"), root.get("aria-label")) == ("img", 'said "so"')


def test_a_histogram_has_a_mark_at_every_level_and_labels_that_do_not_touch():
    levels = [-16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16]
    svg = charts.histogram([0, 4, 2, 1], 20.0, levels, "summary")
    assert len(_tags(svg, "path", "level")) == 11
    labels = [(float(label.get("x")), label.text) for label in _tags(svg, "text")]
    assert [words for _, words in labels] == ["−16α", "−8α", "0", "8α", "16α"]
    places = [x for x, _ in labels]
    assert all(b - a >= charts.LABEL for a, b in pairwise(places))
    assert places[0] + places[-1] == pytest.approx(2 * places[2])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.01, "0.01"), (1e-5, "1e-5"), (63.08, "63.08"), (12_500, "12.5k"), (3e6, "3M"), (-0.5, "-0.5")],
)
def test_numbers_are_short(value, expected):
    assert text.number(value) == expected
