"""What the documents say is what the files hold."""

import re
from pathlib import Path

import pytest

import ldnq as package
from ldnq import checkpoints

CHECKOUT = Path(package.__file__).parent.parent
pytestmark = pytest.mark.skipif(not (CHECKOUT / "pretrained").is_dir(), reason="needs a checkout")
WEIGHTS = sorted((CHECKOUT / "pretrained").glob("*.safetensors"))


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md", "docs/choosing.md"])
def test_pages_show_the_tables_that_the_benchmarks_wrote(page):
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    tables = re.findall(r"<!-- (benchmarks/.*?) -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert len(tables) == text.count("<!-- end -->") > 0
    for name, shown in tables:
        assert shown == (CHECKOUT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_every_model_card_says_what_the_header_says(path):
    card = checkpoints.read(path)[1]
    listed = (CHECKOUT / "pretrained" / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in listed.splitlines() if f"`{path.name}`" in line)
    assert f"| {card['top1']:.2f} |" in row
    assert f"`{card['command']}`" in row
    assert f"| {card['test_images']:,} |" in row


def test_the_digits_network_is_as_accurate_as_its_card_says(workdir):
    from ldnq.config import RunConfig
    from ldnq.measurement import evaluate_network

    metrics = evaluate_network(RunConfig.from_options({"model": "resnet20", "dataset": "digits", "device": "cpu"}))
    card = checkpoints.read(CHECKOUT / "pretrained/resnet20-digits.safetensors")[1]
    # Other processors round differently: one image of 450 is 0.22.
    assert metrics["top1"] == pytest.approx(card["top1"], abs=0.3)
