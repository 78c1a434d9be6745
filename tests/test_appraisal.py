"""Networks and checkpoints are counted with the bits that they have; the page says what is counted."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import ldnq as package
from ldnq import formats, pipeline
from ldnq.appraisal import complexity_of, quantized_complexity
from ldnq.complexity import complexity, shortened, totals
from ldnq.network import build

CHECKOUT = Path(package.__file__).parent.parent


def test_the_bits_of_a_quantized_network_are_those_of_its_codes_and_grids():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(864, 10))
    batches = [torch.rand(8, 3, 16, 16)]
    floats = {layer.name: layer for layer in complexity(module, 16)}
    for abits, bits, operation in ((None, 32, "float"), (6, 6, "k-bit")):
        options = {"solver": "nearest", "training": False} | ({"abits": abits} if abits else {})
        model = pipeline.quantize(module, batches, 7, skip=("0",), **options)
        layers = {layer.name: layer for layer in quantized_complexity(model, 16)}
        assert layers["0"].operation == "float"
        for name in ("2", "4"):
            assert layers[name].weight_bits == pytest.approx(2.807, abs=1e-3)
            assert (layers[name].activation_bits, layers[name].operation) == (bits, operation)
            assert layers[name].macs == floats[name].macs


def test_a_checkpoint_is_counted_like_its_network(tmp_path):
    network = build("resnet20", {"width": 4})
    model = pipeline.quantize(network, [torch.rand(4, 3, 32, 32)], 3, solver="nearest", training=False)
    model.model, model.model_args = "resnet20", {"width": 4}
    formats.h5.save(model, tmp_path / "model.h5")
    for target in (tmp_path, tmp_path / "model.h5"):
        found = complexity_of(str(target), image_size=32)
        assert totals(found)["macs"] == totals(complexity(network, 32))["macs"]
        assert {layer.weight_bits for layer in found if layer.macs} == {model.weights["linear.weight"].codebook.bits}


def rows_of_the_page() -> list[tuple[str, ...]]:
    page = (CHECKOUT / "docs" / "networks.md").read_text(encoding="utf-8")
    table = page[page.index("| network |") :].split("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table]


@pytest.mark.skipif(not (CHECKOUT / "docs").is_dir(), reason="needs a checkout")
def test_the_numbers_of_the_page_are_those_that_are_counted():
    rows = rows_of_the_page()
    assert len(rows) == 7
    for command, parameters, macs, everything, outside, printed_parameters, printed in rows:
        name, *words = command.strip("`").removeprefix("ldnq complexity ").replace("--model-arg", "").split()
        arguments = {
            key: {"true": True}.get(value) or _plain(value) for key, _, value in (w.partition("=") for w in words)
        }
        layers = complexity_of(name, arguments)
        convs = [layer.name for layer in layers if layer.macs]
        left = [layer for layer in layers if layer.name not in convs[1:-1]]
        found = totals(layers)
        assert parameters == f"{found['parameters']:,}"
        assert macs == f"{found['macs'] / 1e6:.2f} M"
        assert everything == f"{(found['macs'] + found['elementwise']) / 1e6:.2f} M"
        assert outside == f"{sum(layer.macs + layer.elementwise for layer in left) / 1e6:.2f} M"
        if name != "resnet20":  # the page says what is not known of that one
            assert re.match(r"[\d.]+ k", printed_parameters)[0] == shortened(found["parameters"])
            whole = f"{(found['macs'] + found['elementwise']) / 1e9:.2f} GMac"
            assert printed.split(" (")[0] in (whole, f"{outside.rstrip('M')}MMac")


def _plain(value: str) -> int | str:
    return int(value) if value.isdecimal() else value
