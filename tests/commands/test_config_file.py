"""`--config`: the same names as the options, in TOML or JSON, and the command line wins."""

import json

import click
import pytest
from click.testing import CliRunner

from ldnq.cli import COMMANDS, main
from ldnq.commands import options
from ldnq.commands.config_file import config_option


@click.command()
@config_option
@options.network_options
@options.data_options
@options.runtime_options
@click.option("--skip", multiple=True)
@click.option("--half", is_flag=True)
@click.option("--lr", type=float, default=0.1)
def command(**values):
    click.echo(json.dumps(values))


@pytest.fixture
def parse(workdir):
    """The values of `command` with this configuration and these words; an error's text where there is one."""

    def parse(text, *words, name="run.toml"):
        (workdir / name).write_text(text)
        result = CliRunner().invoke(command, ["--config", name, *words])
        if result.exception and not isinstance(result.exception, SystemExit):
            return str(result.exception)
        return json.loads(result.stdout) if result.exit_code == 0 else result.stderr.splitlines()[-1]

    return parse


TOML = """
model = "resnet20"
image-size = 40
batch_size = 16
half = true
mean = [0.1, 0.2, 0.3]
skip = ["conv1", "linear"]
model-args = {width = 32, option = "B"}
kbits = 5  # of other commands
"""


def test_names_are_those_of_the_options_with_dashes_or_underscores(parse):
    values = parse(TOML)
    found = {name: values[name] for name in ("model", "image_size", "batch_size", "half", "mean", "skip", "model_args")}
    assert found == {
        "model": "resnet20", "image_size": 40, "batch_size": 16, "half": True, "mean": [0.1, 0.2, 0.3],
        "skip": ["conv1", "linear"], "model_args": {"width": 32, "option": "B"},
    }  # fmt: skip
    assert values["lr"] == 0.1


def test_the_command_line_wins(parse):
    values = parse(TOML, "--image-size", "64", "--skip", "other", "--model-arg", "width=8")
    assert (values["image_size"], values["skip"], values["model_args"]) == (64, ["other"], {"width": 8})
    assert values["batch_size"] == 16


def test_json_says_the_same(parse):
    flat = {"model": "resnet20", "image-size": 40, "skip": "conv1", "model_arg": ["width=32"], "checkpoint": None}
    values = parse(json.dumps(flat), name="run.json")
    assert (values["image_size"], values["skip"], values["model_args"]) == (40, ["conv1"], {"width": 32})
    nested = {"network": {"model": "resnet32"}, "runtime": {"threads": 2}}
    assert parse(json.dumps(nested), name="config.json")["threads"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bach-size = 3", "unknown option 'bach_size': did you mean batch_size"),
        ("no_half = true", "unknown option 'no_half'"),
        ("model = ", "expected TOML in configuration run.toml, found something else"),
        ("half = 'yes'", "expected true or false for half, got 'yes'"),
        ("lr = true", "expected a value for lr, got True"),
        ("lr = [1, 2]", "'1,2' is not a valid float"),
        ("batch_size = 1.5", "'1.5' is not a valid integer range"),
        ("image-size = 3", "3 is not in the range"),
        ("lr = {a = 1}", "expected a value for lr"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(parse, text, message):
    found = parse(text)
    assert message in found
    assert "\n" not in found


def test_files_that_hold_no_names_are_refused(parse, workdir):
    assert "expected JSON" in parse("model = 1", name="run.json")
    assert "expected names and values" in parse("[1]", name="list.json")
    result = CliRunner().invoke(command, ["--config", "absent.toml"])
    assert str(result.exception) == "cannot read configuration absent.toml: No such file or directory"


@pytest.mark.parametrize("name", sorted({"quantize", "train", "evaluate", "sweep"} & set(COMMANDS)))
def test_commands_of_many_options_take_a_configuration(name):
    assert "--config FILE" in CliRunner().invoke(main, [name, "--help"]).stdout


def test_a_runs_configuration_does_for_its_checkpoint(ldnq, tiny, workdir):
    (workdir / "run.toml").write_text(f'model = "tiny_network:build"\ncheckpoint = "{tiny[3]}"\ndataset = "digits"')
    made = ldnq("quantize", "--config", "run.toml", "--no-training", "--output", "run")
    assert made.code == 0, made.err
    measured = ldnq("evaluate", "run/model.h5", "--config", "run/config.json", "--json")
    assert measured.code == 0, measured.err
    metrics = json.loads((workdir / "run/metrics.json").read_text())
    assert json.loads(measured.out)["top1"] == metrics["quantized_top1"]
