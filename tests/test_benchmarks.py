"""Benchmarks are called alike."""

from pathlib import Path

import pytest

import ldnq

FOLDER = Path(ldnq.__file__).parent.parent / "benchmarks"
# What draws what others have measured, and what others call.
WITHOUT = {"figures", "one_run"}
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if "@click.command" in path.read_text(encoding="utf-8")]


@pytest.mark.skipif(not SCRIPTS, reason="needs a checkout")
def test_every_benchmark_takes_a_quick_look():
    without = {path.stem for path in SCRIPTS if "@quick_option" not in path.read_text(encoding="utf-8")}
    assert without == WITHOUT


@pytest.mark.skipif(not SCRIPTS, reason="needs a checkout")
def test_tables_are_written_by_one_function_which_a_look_does_not_let_write():
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert "write_text(" not in text
        assert "write_json(" not in text
