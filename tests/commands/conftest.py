from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from PIL import Image

from ldnq.cli import main
from ldnq.datasets.digits import load_digits

FACTORY = """
from torch import nn


def build(width=12):
    return nn.Sequential(
        nn.Conv2d(3, width, 5, 2, 2), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1, groups=2, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 10),
    )
"""


def call(*words):
    """`ldnq words`, in this process: exit code, standard output, standard error."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


@pytest.fixture
def ldnq():
    """The command line."""
    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a user's own network, `tiny_network:build`, and weights that 'ldnq train' made of it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        (folder / "tiny_network.py").write_text(FACTORY)
        result = call(
            "train", "--model", "tiny_network:build", "--dataset", "digits", "--image-size", 32, "--epochs", 8, "--lr",
            0.1, "--batch-size", 64, "--precision", "32", "--output", "run",
        )  # fmt: skip
        assert result.code == 0, result.err
        weights = folder / "run" / "tiny_network.build-digits.safetensors"
        yield SimpleNamespace(folder=folder, weights=weights, log=result.err)


@pytest.fixture
def tiny(trained, workdir, monkeypatch):
    """Options for that network on the digits, in an empty current folder."""
    monkeypatch.syspath_prepend(trained.folder)
    return ["--model", "tiny_network:build", "--checkpoint", trained.weights, "--dataset", "digits"]


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory):
    """Some of the digits as an image folder, `train/<class>/` and `test/<class>/`."""
    root = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 200), ("test", 60)):
        images = load_digits(root, split)
        for index in range(count):
            path = root / split / images.class_names[images.labels[index]] / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.Image.save(images.picture(index), path)
    return root
