import subprocess
import sys
from pathlib import Path

import pytest

import ldnq as package
from ldnq.cli import COMMANDS

CHECKOUT = Path(package.__file__).parent.parent


def _run(*words, cwd=None):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, timeout=60)


def test_help_does_not_wait_for_torch():
    result = _run("-X", "importtime", "-m", "ldnq", "--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "numpy", "h5py", "rich.console"}


@pytest.mark.skipif(not (CHECKOUT / "cli.py").exists(), reason="needs a checkout")
def test_the_script_of_a_checkout_is_the_command():
    assert _run("cli.py", "--version", cwd=CHECKOUT).stdout == f"ldnq, version {package.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(ldnq, name):
    result = ldnq(name, "--help")
    assert result.code == 0
    assert f"ldnq {name}" in result.out


@pytest.mark.parametrize("what", ["models", "datasets", "solvers", "presets"])
def test_lists_name_what_options_accept(ldnq, what):
    expected = {
        "models": ["resnet20", "resnet110", "resnet18", "mobilenet_v2"],
        "datasets": ["cifar10", "digits", "folder", "imagenet", "imagenette", "svhn"],
        "solvers": ["admm", "nearest"],
        "presets": ["paper"],
    }
    words = ldnq("list", what).out.split()
    assert all(name in words for name in expected[what])


def test_an_unknown_option_is_one_line(ldnq):
    result = ldnq("quantize", "--no-such-option")
    assert (result.code, result.err.count("\n")) == (2, 1)
