import xml.etree.ElementTree as ElementTree

import pytest

from ldnq import curves
from ldnq.errors import DataError
from ldnq.report.curves import accuracy_chart, write_chart

ROWS = [
    {"epoch": 1, "loss": 1.25, "top1": 40.0, "lr": 0.1},
    {"epoch": 2, "loss": 0.5, "top1": 70.0, "lr": 0.01, "held_out_loss": 0.75, "held_out_top1": 60.0},
    {"epoch": 3, "loss": 0.25, "top1": 80.0, "lr": 0.001, "held_out_top1": 65.0, "test_top1": 62.5},
]
SVG = "{http://www.w3.org/2000/svg}"


def test_a_table_is_read_as_it_was_written(tmp_path):
    curves.write(tmp_path / "training.csv", ROWS)
    assert (tmp_path / "training.csv").read_text().splitlines() == [
        "epoch,loss,top1,lr,held_out_loss,held_out_top1,test_top1",
        "1,1.25,40,0.1,,,",
        "2,0.5,70,0.01,0.75,60,",
        "3,0.25,80,0.001,,65,62.5",
    ]
    assert curves.read(tmp_path / "training.csv") == ROWS


@pytest.mark.parametrize("content", [None, "epoch,loss\n1,much\n", "epoch\n1,2\n"])
def test_what_is_no_table_is_said(tmp_path, content):
    if content:
        (tmp_path / "training.csv").write_text(content)
    with pytest.raises(DataError, match="expected a table of training at"):
        curves.read(tmp_path / "training.csv")


def test_the_chart_says_what_it_shows():
    root = ElementTree.fromstring(accuracy_chart(ROWS))
    said = "Top-1 by epoch over 3 epochs; at the end training 80.00%, held out 65.00%, test 62.50%."
    assert root.get("aria-label") == said
    assert [text.text for text in root.iter("text")][-3:] == ["training", "held out", "test"]
    lines = [path for path in root.iter("path") if path.get("class") == "line" and path.find("title") is not None]
    assert [line.get("d").count("L") for line in lines] == [2, 1, 0]
    assert "held out" not in accuracy_chart(ROWS[:1])


@pytest.mark.parametrize(("epochs", "expected"), [(1, "1"), (2, "1 2"), (6, "1 2 3 4 5 6"), (200, "50 100 150 200")])
def test_epochs_are_whole_numbers(epochs, expected):
    root = ElementTree.fromstring(accuracy_chart([{"epoch": n, "top1": 99.5} for n in range(1, epochs + 1)]))
    words = [text.text for text in root.iter("text") if text.get("text-anchor") == "middle"]
    assert " ".join(words[: words.index("epoch")]) == expected


def test_a_chart_alone_brings_its_colours(tmp_path):
    write_chart(tmp_path / "curves.svg", ROWS)
    root = ElementTree.parse(tmp_path / "curves.svg").getroot()
    assert root.tag == f"{SVG}svg"
    style = root.find(f"{SVG}style").text
    for wanted in ("prefers-color-scheme: dark", "--s0:", "--s2:", "svg .line", "background: var(--paper)"):
        assert wanted in style
    assert "url(" not in style
    assert not [element for element in root.iter() if element.get("href")]
