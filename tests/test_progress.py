import io

from rich.console import Console

from ldnq.progress import display, track


def test_a_terminal_sees_a_bar_that_is_gone_at_the_end():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with display(console):
        assert list(track(range(3), "counting")) == [0, 1, 2]
    assert "counting" in console.file.getvalue()


def test_elsewhere_a_loop_is_just_a_loop():
    console = Console(file=io.StringIO(), force_terminal=False)
    with display(console):
        assert list(track(range(3), "counting")) == [0, 1, 2]
    assert console.file.getvalue() == ""
    assert list(track(iter("ab"), "no length, no display")) == ["a", "b"]
