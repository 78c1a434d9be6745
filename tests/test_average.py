"""`pretrained/average.py` makes one network of several."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ldnq as package
from ldnq import checkpoints

CHECKOUT = Path(package.__file__).parent.parent
pytestmark = pytest.mark.skipif(not (CHECKOUT / "pretrained").is_dir(), reason="needs a checkout")


def test_the_mean_has_the_mean_weights_its_own_statistics_and_a_measured_card(workdir):
    tensors, card = checkpoints.read(CHECKOUT / "pretrained/resnet20-digits.safetensors")
    torch.manual_seed(0)
    for name, sign in (("one", 1), ("two", -1)):
        moved = {
            key: tensor + sign * 0.01 if key.endswith("conv1.weight") else tensor.clone()
            for key, tensor in tensors.items()
        }
        moved["bn1.running_mean"] += 100
        checkpoints.write(Path(f"{name}.safetensors"), moved, card)
    script = CHECKOUT / "pretrained/average.py"
    command = [sys.executable, script, "--data-root", ".", "one.safetensors", "two.safetensors", "mean.safetensors"]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"})
    found, written = checkpoints.read(Path("mean.safetensors"))
    torch.testing.assert_close(found["layer1.0.conv1.weight"], tensors["layer1.0.conv1.weight"])
    assert (found["bn1.running_mean"] - tensors["bn1.running_mean"]).abs().max() < 1
    assert written["top1"] > 97
    assert written["test_images"] == 450
    assert written["command"] == "python pretrained/average.py one.safetensors two.safetensors mean.safetensors"
