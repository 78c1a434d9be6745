import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch

import ldnq as package
from ldnq.cli import COMMANDS, main
from ldnq.commands.list import LISTS

CHECKOUT = Path(package.__file__).parent.parent
HEAVY = {"torch", "numpy", "h5py", "rich.console"}


def _run(*words, cwd=None, env=None):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=env, timeout=60)


def _imported(result):
    """The modules that a process run with `-X importtime` has imported."""
    return {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}


def test_help_does_not_wait_for_torch():
    result = _run("-X", "importtime", "-m", "ldnq", "--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)
    imported = _imported(result)
    assert "click" in imported
    assert not imported & HEAVY


@pytest.mark.skipif(not (CHECKOUT / "cli.py").exists(), reason="needs a checkout")
def test_the_script_of_a_checkout_is_the_command():
    assert _run("cli.py", "--version", cwd=CHECKOUT).stdout == f"ldnq, version {package.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(ldnq, name):
    result = ldnq(name, "--help")
    assert result.code == 0
    assert f"ldnq {name}" in result.out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_command_are_calls_that_it_understands(name, workdir):
    for run in ("RUN", "resnet20"):
        (workdir / "results" / run).mkdir(parents=True)
        (workdir / "results" / run / "config.json").write_text('{"model": "resnet20"}')
    command = main.get_command(click.Context(main), name)
    examples = re.findall(rf"^ *ldnq {name}\b(.*)$", command.help, re.MULTILINE)
    assert examples
    for words in examples:
        command.make_context(name, shlex.split(words))


@pytest.mark.parametrize("what", ["models", "datasets", "methods", "stages", "solvers", "presets", "formats"])
def test_lists_name_what_options_accept(ldnq, what):
    expected = {
        "methods": ["ldnq"],
        "stages": ["layerwise", "cascade", "blocks", "distillation", "activations"],
        "formats": ["onnx", "safetensors", "torch", "torch-export"],
        "models": [
            "resnet20",
            "resnet110",
            "preact-resnet20",
            "preact-resnet50",
            "svhn-net",
            "resnet18",
            "mobilenet_v2",
        ],
        "datasets": ["cifar10", "digits", "folder", "imagenet", "imagenette", "svhn", "svhn-extra"],
        "solvers": ["admm", "nearest"],
        "presets": ["paper"],
    }
    words = ldnq("list", what).out.split()
    assert all(name in words for name in expected[what])


@pytest.mark.parametrize(
    ("what", "name", "words"),
    [
        ("solvers", "admm", ["alternating direction method of multipliers", "AAAI 2019"]),
        ("stages", "blocks", ["Reconstruction of one residual block", "arXiv 2102.05426"]),
        ("models", "resnet18", ["224", "imagenet", "Deep Residual Learning for Image Recognition", "arXiv 1512.03385"]),
        ("models", "resnet20", ["32", "cifar10", "20 layers", "arXiv 1512.03385"]),
        ("models", "preact-resnet20", ["32", "cifar10", "20 layers", "factor=5", "arXiv 1603.05027"]),
        ("models", "svhn-net", ["40", "svhn", "arXiv 1911.07346"]),
        ("datasets", "imagenet", ["ILSVRC 2012", "arXiv 1409.0575"]),
    ],
)
def test_lists_say_what_a_name_stands_for_and_where_it_was_published(ldnq, what, name, words):
    (line,) = (line for line in ldnq("list", what).out.splitlines() if line.split()[:1] == [name])
    assert all(word in line for word in words)


@pytest.mark.parametrize("what", LISTS)
def test_lists_do_not_wait_for_torch(what):
    result = _run("-X", "importtime", "-m", "ldnq", "list", what)
    assert result.returncode == 0
    assert not _imported(result) & (HEAVY - {"rich.console"})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ldnq swe", {"sweep"}),
        ("ldnq quantize --model resnet11", {"resnet110"}),
        ("ldnq sweep --models resnet20,resnet11", {"resnet20,resnet110"}),
        ("ldnq quantize --solver ad", {"admm"}),
        ("ldnq quantize --preset ba", {"balanced"}),
        ("ldnq export --format safe", {"safetensors"}),
        ("ldnq sample --dataset dig", {"digits"}),
        ("ldnq list sol", {"solvers"}),
        ("ldnq quantize --kbits 1", {"11"}),
    ],
)
def test_completion_does_not_wait_for_torch(line, expected):
    words = line.split()
    settings = {"_LDNQ_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = _run("-X", "importtime", "-m", "ldnq", env=os.environ | settings)
    assert {entry.partition(",")[2] for entry in result.stdout.split()} == expected
    assert not _imported(result) & HEAVY


def test_environment_is_what_a_bug_report_needs(ldnq):
    found = json.loads(ldnq("env", "--json").out)
    assert found["ldnq"] == package.__version__
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["devices"][0] == "cpu"
    assert found["cpu"] == torch.backends.cpu.get_cpu_capability()
    text = ldnq("env").out
    assert torch.__version__ in text
    assert platform.platform() in text


def test_help_says_what_exit_codes_mean(ldnq):
    lines = ldnq("--help").out.splitlines()
    assert [line.split()[0] for line in lines[-5:]] == ["0", "1", "2", "3", "130"]


def test_an_unknown_option_is_one_line(ldnq):
    result = ldnq("quantize", "--no-such-option")
    assert (result.code, result.err.count("\n")) == (2, 1)


def _interrupt(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("part", "words", "kept"),
    [
        (
            "ldnq.stages.layerwise.Layerwise.reconstruction",
            ["quantize", "--output", "run"],
            "all finished layers are kept, 'ldnq quantize --resume run' goes on",
        ),
        ("ldnq.measurement.evaluate", ["evaluate"], "nothing was saved"),
    ],
    ids=["quantize", "evaluate"],
)
def test_who_interrupts_is_told_what_is_kept(ldnq, tiny, workdir, monkeypatch, part, words, kept):
    monkeypatch.setattr(part, _interrupt)
    result = ldnq(words[0], *tiny, *words[1:])
    assert (result.code, result.out) == (130, "")
    assert result.err.splitlines()[-1] == f"interrupted: {kept}"
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:131] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("could not create a primitive"),
        ImportError("_csr.cpython-311-x86_64-linux-gnu.so: failed to map segment from shared object"),
    ],
    ids=["python", "torch", "onednn", "linker"],
)
def test_a_lack_of_memory_is_one_line(ldnq, tiny, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("ldnq.measurement.evaluate", fail)
    result = ldnq("evaluate", *tiny)
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[-1].startswith("error: not enough memory: use a smaller --batch-size")
