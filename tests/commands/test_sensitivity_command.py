import csv
import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import pytest

FAST = ("--solver", "nearest")


def _rows(folder):
    return list(csv.DictReader((folder / "sensitivity.csv").read_text().splitlines()))


def test_a_run_leaves_a_table_and_a_plot(ldnq, tiny, workdir):
    result = ldnq("sensitivity", *tiny, *FAST, "--kbits", "9,3", "--output", "run")
    assert result.code == 0, result.err
    assert sorted(path.name for path in (workdir / "run").iterdir()) == [
        "config.json", "metrics.json", "sensitivity.csv", "sensitivity.svg",
    ]  # fmt: skip
    rows = _rows(workdir / "run")
    assert [(row["name"], row["kbits"]) for row in rows] == [(n, k) for n in ("0", "3", "6", "11") for k in ("3", "9")]
    for few, many in zip(rows[::2], rows[1::2]):
        assert float(few["divergence"]) > float(many["divergence"])
        assert float(few["relative_error"]) > float(many["relative_error"])
        assert 50 < float(few["top1"]) <= 100
        assert f"{float(few['divergence']):.1e}" in result.out
    metrics = json.loads((workdir / "run/metrics.json").read_text())
    assert (metrics["kbits"], metrics["calibration_samples"]) == ([3, 9], 100)
    assert f"{metrics['teacher_top1']:.2f}%" in result.out
    plot = ElementTree.parse(workdir / "run/sensitivity.svg").getroot()
    assert plot.tag == "{http://www.w3.org/2000/svg}svg"
    text = (workdir / "run/sensitivity.svg").read_text()
    assert all(f"<!-- {words} -->" in text for words in ("3 levels", "9 levels", "11"))


def test_its_configuration_is_one_to_quantize_by(ldnq, tiny, workdir):
    assert ldnq("sensitivity", *tiny, *FAST, "--kbits", "3", "--output", "run").code == 0
    auto = ("--kbits", "auto", "--target-bits", 2)
    result = ldnq("quantize", "--config", "run/config.json", *auto, "--output", "quantized")
    assert result.code == 0, result.err
    assert len({row["name"] for row in _rows(workdir / "quantized")}) == 4


def test_images_without_labels_will_do(ldnq, tiny, workdir, digit_files):
    (workdir / "flat").mkdir()
    for number, path in enumerate(sorted(digit_files.glob("train/*/*.png"))):
        shutil.copy(path, workdir / "flat" / f"{number}.png")
    data = ("--dataset", "folder", "--data-root", "flat")
    result = ldnq("sensitivity", *tiny[:4], *data, *FAST, "--kbits", "3", "--output", "run")
    assert result.code == 0, result.err
    assert {row["top1"] for row in _rows(workdir / "run")} == {""}
    assert all(0 < float(row["agreement"]) <= 100 for row in _rows(workdir / "run"))


def test_so_will_no_images_at_all(ldnq, tiny, workdir):
    none = ("--no-calibration-data", "--synthesize", 4)
    result = ldnq("sensitivity", *tiny, *FAST, *none, "--kbits", "3", "--skip", "0", "--output", "run")
    assert result.code == 0, result.err
    assert [row["name"] for row in _rows(workdir / "run")] == ["3", "6", "11"]


def test_without_matplotlib_the_table_is_there_and_a_remark(ldnq, tiny, workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = ldnq("sensitivity", *tiny, *FAST, "--kbits", "3", "--output", "run")
    assert result.code == 0, result.err
    assert "pip install 'ldnq[plots]'" in result.err
    assert len(_rows(workdir / "run")) == 4
    assert not (workdir / "run/sensitivity.svg").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kbits", "3,4"], "expected some of 3,5,7,9,11, got '4'"),
        (["--kbits", ""], "expected some of 3,5,7,9,11, got ''"),
        (["--kbits", "auto"], "expected some of 3,5,7,9,11, got 'auto'"),
        (["--skip", "conv9"], "--skip conv9 matches none of the layers"),
        (["--preset", "quick"], "unknown preset 'quick'"),
    ],
    ids=["even", "none", "auto", "no such layer", "no such preset"],
)
def test_bad_input_is_one_line_and_exit_code_2(ldnq, tiny, words, message):
    result = ldnq("-q", "sensitivity", *tiny, *words)
    lines = [line for line in result.err.splitlines() if not line.startswith("warning:")]
    assert (result.code, len(lines)) == (2, 1)
    assert message in lines[0]
