"""`pretrained/deepen.py` makes a deeper network of the same function."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ldnq as package
from ldnq import checkpoints
from ldnq.network import build

CHECKOUT = Path(package.__file__).parent.parent
pytestmark = pytest.mark.skipif(not (CHECKOUT / "pretrained").is_dir(), reason="needs a checkout")


def test_a_deepened_network_computes_what_the_shallow_one_does(workdir):
    source = CHECKOUT / "pretrained/resnet20-digits.safetensors"
    script = CHECKOUT / "pretrained/deepen.py"
    command = [sys.executable, script, source, "resnet44", "deep.safetensors"]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"})
    images = torch.rand(4, 3, 32, 32)
    logits = []
    for model, path in (("resnet20", source), ("resnet44", Path("deep.safetensors"))):
        tensors, card = checkpoints.read(path)
        module = build(model, card["model_args"])
        checkpoints.load_into(module, tensors, str(path))
        logits.append(module(images))
    assert torch.equal(*logits)
    # What is new can learn: a block whose first batch norm were silent too would get no gradient.
    logits[1].sum().backward()
    assert module.layer1[2].bn2.weight.grad.abs().sum() > 0
