"""Runs side by side: what they are called, and what their lines go through."""

import re
from pathlib import Path

import pytest

from ldnq.report import comparison
from ldnq.report.record import Record


def _record(path, top1=90.0, size=1000, **settings):
    settings = {"preset": "fast", "kbits": 3, "seed": 0, "data_root": None, "views": None} | settings
    metrics = {"kbits": settings["kbits"], "quantized_top1": top1, "teacher_top1": 91.0, "packed_bytes": size}
    return Record(Path(path), {"recipe": settings}, metrics, [], None)


def _labels(*records):
    return [record.label for record in comparison.labelled(records)]


def test_runs_are_called_by_what_tells_them_apart():
    assert _labels(_record("a", kbits=3), _record("b", kbits=5)) == ["3 levels", "5 levels"]
    three = _record("a"), _record("b", preset="best"), _record("c", preset="best", seed=1)
    assert _labels(*three) == ["fast, seed 0", "best, seed 0", "best, seed 1"]
    assert _labels(_record("a", views=1), _record("b", views=4)) == ["views 1", "views 4"]
    assert _labels(_record("a", training=True), _record("b", training=False)) == ["training", "no training"]


def test_what_differs_along_with_the_preset_is_not_repeated():
    assert _labels(_record("a", views=1), _record("b", preset="best", views=4)) == ["fast", "best"]


def test_runs_that_differ_in_nothing_are_called_by_their_folders():
    assert _labels(_record("x/run"), _record("y/run", data_root="elsewhere")) == ["x/run", "y/run"]


def test_settings_that_are_alike_are_not_listed():
    found = comparison.differing([_record("a", kbits=3), _record("b", kbits=5, views=2)])
    assert found == {"kbits": [3, 5], "views": [None, 2]}


def test_a_line_goes_through_the_mean_of_seeds():
    runs = [
        _record("a", 80, 1000), _record("b", 90, 1000, seed=1), _record("c", 95, 2000, kbits=5),
        _record("d", 85, 3000, kbits=9), _record("e", 70, 3000, preset="paper", kbits=9),
    ]  # fmt: skip
    found = comparison.of(comparison.labelled(runs))["accuracy"]
    assert [label for *_, label in found["legend"]] == ["fast", "paper"]
    for chart in (found["levels"], found["size"]):
        dots = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
        line = [
            tuple(map(float, place.split())) for place in re.search(r'class="line".*? d="M(.*?)"', chart)[1].split("L")
        ]
        assert len(dots) == 5
        assert line[0] == pytest.approx(((dots[0][0] + dots[1][0]) / 2, (dots[0][1] + dots[1][1]) / 2), abs=0.1)
        assert line[1:] == dots[2:4]


@pytest.mark.parametrize("kbits", ["auto", [3, 5, 3]], ids=["auto", "a number a layer"])
def test_without_one_number_of_levels_accuracy_stands_against_size_alone(kbits):
    runs = [_record("a"), _record("b", 92, 1500, kbits=kbits)]
    found = comparison.of(comparison.labelled(runs))["accuracy"]
    assert found["levels"] is None
    assert found["size"].count("<circle") == 2


def test_runs_that_were_not_measured_have_no_accuracy():
    assert comparison.of(comparison.labelled([_record("a", None), _record("b", None)]))["accuracy"] is None
