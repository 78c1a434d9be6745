"""What a user sees of a loop: bars on a terminal, lines elsewhere."""

import io
import logging
import re
import time

import pytest
from rich.console import Console

from ldnq import progress
from ldnq.progress import clock, display, headline, say, track


def _screen(console) -> str:
    """All that was ever written, without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)


@pytest.fixture
def pipe():
    return Console(file=io.StringIO(), force_terminal=False)


def _lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]


def test_a_terminal_sees_stage_step_item_remark_and_time_left(terminal, caplog):
    caplog.set_level(logging.INFO, "ldnq")
    with display(terminal):
        headline("stage 1 of 2: layerwise")
        for layer in track(["conv1", "conv2", "linear"], "quantizing layers", "layer {}".format):
            time.sleep(0.15)
            say(f"relative error of {layer}")
    screen = _screen(terminal)
    assert "stage 1 of 2: layerwise · 0:00" in screen
    assert re.search(r"quantizing layers .* 1/3 0:00 left", screen)
    assert "layer conv2 · last relative error of conv1" in screen
    # The display stands for lines of the log.
    assert _lines(caplog) == []


def test_nothing_of_a_display_is_left_at_its_end(terminal):
    with display(terminal):
        assert list(track(range(3), "counting")) == [0, 1, 2]
    written = terminal.file.getvalue()
    assert "counting" in written
    # The cursor is shown again, and the last thing is that lines are erased.
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert "counting" not in written[written.rindex("\x1b[2K") :]


def test_an_interrupted_loop_is_not_called_done(terminal, caplog, monkeypatch):
    monkeypatch.setattr(progress, "LONG", 0.0)
    caplog.set_level(logging.INFO, "ldnq")
    with pytest.raises(KeyboardInterrupt), display(terminal):
        _interrupt(track(range(3), "counting"))
    assert _lines(caplog) == []
    assert "\x1b[?25h" in terminal.file.getvalue()


def _interrupt(loop):
    for _ in loop:
        raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["pipe", "dumb"])
def test_elsewhere_a_step_is_a_line_of_the_log(where, pipe, terminal, caplog, monkeypatch):
    console = pipe
    if where == "dumb":
        monkeypatch.setenv("TERM", "dumb")
        console = Console(file=io.StringIO(), force_terminal=True)
    caplog.set_level(logging.INFO, "ldnq")
    with display(console):
        for _ in track(["conv1", "conv2"], "quantizing layers", str):
            say("relative error 0.5")
    assert console.file.getvalue() == ""
    assert _lines(caplog) == [
        "quantizing layers 1 of 2, conv1: relative error 0.5",
        "quantizing layers 2 of 2, conv2: relative error 0.5",
    ]


def test_a_long_silent_loop_says_how_far_it_is(caplog, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(progress, "LONG", 0.0)
    caplog.set_level(logging.INFO, "ldnq")
    assert list(track(range(2), "evaluating")) == [0, 1]
    assert list(track(iter("ab"), "no length")) == ["a", "b"]
    assert _lines(caplog) == ["evaluating: 1 of 2, 0:00 left", "evaluating: done in 0:00", "no length: done in 0:00"]


def test_loops_within_loops_are_told_apart(caplog):
    caplog.set_level(logging.INFO, "ldnq")
    for _ in track(range(1), "outer"):
        for _ in track(range(2), "inner"):
            break
        say("between")
    assert _lines(caplog) == ["outer 1 of 1: between"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00")])
def test_times_are_read_at_a_glance(seconds, text):
    assert clock(seconds) == text
