"""Groups of options that several commands share, one decorator each; names are those of the configuration's fields."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ldnq.commands.completion import complete
from ldnq.commands.launch import on_devices
from ldnq.config import AUTO, PRECISIONS, SCALES, STRATEGIES, TRAINING_PRECISIONS, RecipeConfig, RuntimeConfig
from ldnq.training_recipe import KEEP, MILESTONES, OPTIMIZERS, SCHEDULES, TrainingRecipe


def _group(*options: Callable) -> Callable:
    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class Triple(click.ParamType):
    """Three comma-separated numbers."""

    name = "R,G,B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float, float]:
        """A tuple of three floats."""
        if isinstance(value, (tuple, list)):
            red, green, blue = value
            return red, green, blue
        try:
            red, green, blue = (float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"expected three comma-separated numbers, got {value!r}", param, ctx)
        return red, green, blue


class Several(click.ParamType):
    """Values with commas between them, each of the type `single`; if `distinct` at least one, each once."""

    def __init__(self, single: click.ParamType, name: str, distinct: bool = False) -> None:
        self.single = single
        self.name = name
        self.distinct = distinct

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """A tuple of them, in the order given."""
        if isinstance(value, (tuple, list)):
            return tuple(value)
        words = [word.strip() for word in value.split(",") if word.strip()]
        if self.distinct and not words:
            self.fail(f"expected values with commas between them, got {value!r}", param, ctx)
        values = tuple(self.single.convert(word, param, ctx) for word in words)
        return tuple(dict.fromkeys(values)) if self.distinct else values


class OneOrSeveral(click.Choice):
    """One of the choices, or several with commas between them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A choice, or a tuple of some."""
        if not isinstance(value, str):
            return value
        chosen = tuple(super(OneOrSeveral, self).convert(word.strip(), param, ctx) for word in value.split(","))
        return chosen if len(chosen) > 1 else chosen[0]


BIT_WIDTHS = Several(click.INT, "N,…")


def parse_arguments(ctx: click.Context, param: click.Parameter, values: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE of every value, as JSON where it is some."""
    arguments: dict[str, Any] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"expected NAME=VALUE, got {value!r}", ctx, param)
        try:
            arguments[name] = json.loads(text)
        except ValueError:
            arguments[name] = text
    return arguments


def parse_kbits(ctx: click.Context, param: click.Parameter, value: Any) -> int | str | tuple[int, ...]:
    """Numbers of the words that are some."""
    words = value if isinstance(value, tuple) else (value,)
    numbers = tuple(word if word == AUTO else int(word) for word in words)
    return numbers if len(numbers) > 1 else numbers[0]


def parse_kbits_for(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, int]:
    """PATTERN=K of every value, K where it is one; what levels there are, the configuration knows."""
    found: dict[str, int] = {}
    for value in values:
        pattern, _, kbits = value.rpartition("=")
        if not (pattern and kbits.isdecimal()):
            raise click.BadParameter(f"expected PATTERN=K, such as 'layer1.*=5', got {value!r}", ctx, param)
        # The last one counts, also of equal patterns.
        found.pop(pattern, None)
        found[pattern] = int(kbits)
    return found


model_option = click.option(
    "--model", metavar="NAME", shell_complete=complete("models"), help="A known network, or package.module:factory."
)

model_args_option = click.option(
    "--model-arg",
    "model_args",
    metavar="NAME=VALUE",
    multiple=True,
    callback=parse_arguments,
    help="An argument of the network, such as width=32 or option=B. Repeatable.",
)

network_options = _group(
    model_option,
    model_args_option,
    click.option("--num-classes", type=click.IntRange(2), help="Outputs of the network, for a fine-tuned head."),
    click.option("--checkpoint", type=click.Path(), metavar="FILE", help="Weights: .safetensors, .pt, .pth or .th."),
    click.option(
        "--pretrained-dir", default="pretrained", show_default=True, help="Where weights are looked for first."
    ),
)

data_options = _group(
    click.option(
        "--dataset",
        metavar="NAME",
        shell_complete=complete("datasets"),
        help="A known dataset; the network's usual one if left out.",
    ),
    click.option(
        "--data-root",
        type=click.Path(),
        help="The dataset's own folder, or its tar shards, 'DIR/train-{0000..0146}.tar'; else $LDNQ_DATA/<dataset> or "
        "data/<dataset>.",
    ),
    click.option("--download", is_flag=True, help="Fetch the dataset where torchvision can."),
    click.option("--image-size", type=click.IntRange(8, 4096), metavar="PIXELS", help="Side of the network's input."),
    click.option("--mean", type=Triple(), help="Mean of each channel, of values from 0 to 1."),
    click.option("--std", type=Triple(), help="Standard deviation of each channel."),
)

calibration_options = _group(
    click.option("--ratio", type=float, default=0.01, show_default=True, help="Share of the training images to use."),
    click.option("--samples", type=click.IntRange(1), metavar="N", help="Use exactly N images instead."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything random."),
    click.option("--stratified", is_flag=True, help="Draw every class in proportion (needs labels)."),
    click.option("--resample", is_flag=True, help="Draw anew even if this set was drawn before."),
)

calibration_file_option = click.option(
    "--calibration", type=click.Path(), metavar="FILE", help="Use the calibration set in FILE."
)

synthesis_options = _group(
    click.option("--synthesize", type=click.IntRange(0), default=0, metavar="N", help="Make up N images beside them."),
    click.option("--calibration-data/--no-calibration-data", default=True, help="Whether to use real images at all."),
)

layer_options = _group(
    click.option(
        "--solver",
        metavar="NAME",
        shell_complete=complete("solvers"),
        help="Of each layer's problem; see 'ldnq list solvers'. [default: preset's]",
    ),
    click.option("--scale", type=click.Choice(SCALES), help="One α a layer, or a channel. [default: the preset's]"),
    click.option("--quantize-bias/--no-quantize-bias", help="Quantize the bias of linear layers with their weights."),
    click.option("--skip", multiple=True, metavar="NAME", help="Keep layers of this name (a glob) float. Repeatable."),
    click.option("--keep-first-last", is_flag=True, help="Keep the first and the last layer float."),
    click.option(
        "--views", type=click.IntRange(0), help="Random views of each image beside it. [default: the preset's]"
    ),
    click.option(
        "--gram-samples",
        type=click.IntRange(0),
        default=RecipeConfig.gram_samples,
        show_default=True,
        metavar="N",
        help="Of a layer's positions in all images take about N, of some of the images; 0: all.",
    ),
)


def _runtime_options(precisions: Sequence[str]) -> Callable:
    return _group(
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option(
            "--precision", type=click.Choice(precisions), default="auto", show_default=True, help="Of network passes."
        ),
        click.option(
            "--batch-size", type=click.IntRange(1), default=128, show_default=True,
            help="Images at once; of more than 128 pixels fewer, but in training.",
        ),
        click.option(
            "--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read images."
        ),
        click.option(
            "--threads", type=click.IntRange(0), default=0, help="Threads of the processor; 0: torch's choice."
        ),
    )  # fmt: skip


runtime_options = _runtime_options(PRECISIONS)

memory_option = click.option(
    "--max-memory",
    type=float,
    metavar="GIB",
    help="Of the whole process; what has no room goes into temporary files. [default: a quarter of what is free]",
)

training_runtime_options = _runtime_options(TRAINING_PRECISIONS)

process_options = _group(
    click.option(
        "--devices", type=click.IntRange(1), metavar="N", callback=on_devices,
        help="Processes on each host. [default: as were started, else 1]",
    ),
    click.option(
        "--num-nodes", type=click.IntRange(1), metavar="N", is_eager=True,
        help="Hosts. [default: as were started, else 1]",
    ),
    click.option(
        "--strategy", type=click.Choice(STRATEGIES), default=STRATEGIES[0], show_default=True,
        help="How processes work together, of lightning-fabric; auto is ddp where there are several.",
    ),
    click.option(
        "--timeout", type=click.IntRange(1), default=RuntimeConfig.timeout, show_default=True, metavar="SECONDS",
        help="So long a process may be silent before it counts as lost.",
    ),
)  # fmt: skip

sync_option = click.option(
    "--sync-batchnorm", is_flag=True, help="Batch norms see the training batches of all processes as one."
)


def _training(name: str, help: str, metavar: str | None = None, kind: Any = None) -> Callable:
    """The option of a field of `TrainingRecipe`, with its default and type."""
    default = getattr(TrainingRecipe, name)
    flag = isinstance(default, bool)
    return click.option(
        f"--{name.replace('_', '-')}", is_flag=flag, type=None if flag else kind or type(default), default=default,
        show_default=not flag and default != (), metavar=metavar, help=help,
    )  # fmt: skip


# Of every command that trains on labelled images; `training_recipe` reads them, and --batch-size of the machine's.
training_options = _group(
    _training("epochs", "Passes over the images.", kind=click.IntRange(1)),
    _training("optimizer", "SGD with Nesterov momentum, or Adam.", kind=click.Choice(OPTIMIZERS)),
    _training("lr", "Highest learning rate."),
    _training("momentum", "Of SGD; of Adam the decay of its mean of gradients."),
    _training("weight_decay", "Of all parameters."),
    _training("schedule", "How the learning rate moves.", kind=click.Choice(SCHEDULES)),
    _training("warmup", "Epochs in which the rate rises; one-cycle: 0 is three tenths of all.", "EPOCHS"),
    _training(
        "milestones", "Of schedule step: epochs, or shares of them, after which the rate falls. "
        f"[default: {','.join(map(str, MILESTONES))}]", kind=Several(click.FLOAT, "N,…"),
    ),
    _training("gamma", "Of schedules step and plateau: the factor by which the rate falls."),
    _training("patience", "Of schedule plateau: epochs without a lower loss before the rate falls.", "EPOCHS"),
    _training("label_smoothing", "Share of each label that goes to all classes.", "SHARE"),
    _training("ema", "Decay of a moving average of the weights, which is measured and kept; 0: none.", "DECAY"),
    _training("clip", "Highest norm of the gradients; 0: any.", "NORM"),
    _training("hold_out", "Share of the training images to choose the epoch and judge plateaus by.", "SHARE"),
    _training("keep", "Weights of the last epoch, or of the one with the lowest loss.", kind=click.Choice(KEEP)),
    _training("test_every", "Measure on test images every N epochs; 0: only at the end.", "N"),
    _training("seed", "Seed of everything random.", kind=click.IntRange(0)),
    _training("deterministic", "Only algorithms that give the same bits again on the same machine."),
    _training("distillation", "Of a teacher: the share of the loss that compares with its outputs.", "SHARE"),
    _training("temperature", "Of a teacher: what outputs are divided by before they are compared."),
)  # fmt: skip

teacher_options = _group(
    click.option(
        "--teacher", type=click.Path(path_type=Path), metavar="FILE", help="Weights of a float network to learn from."
    ),
    click.option(
        "--teacher-model", metavar="NAME", shell_complete=complete("models"),
        help="The teacher's network; --model's, with its arguments, otherwise.",
    ),
)  # fmt: skip

tensorboard_option = click.option(
    "--tensorboard", "curves", is_flag=True, help="Write curves of training into DIR/tensorboard."
)

output_option = click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.")


def words(command: str) -> list[str]:
    """What was typed, from the name of the `command` on."""
    said = click.get_current_context().meta["ldnq.words"]
    return said[said.index(command) :]


def require_model(model: str | None) -> None:
    """Raise `click.UsageError` where no network was named."""
    if not model:
        raise click.UsageError("expected --model NAME; 'ldnq list models' shows the names")


def typed(names: Iterable[str]) -> set[str]:
    """Of the options called so those that stand on the command line, rather than in a configuration."""
    context = click.get_current_context()
    return {name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}


def settle_calibration(values: dict) -> None:
    """Of options that say which images to calibrate on, let those of the command line win over a configuration's.

    Raises `click.UsageError` where the command line contradicts itself.
    """
    given = typed(values)
    drawing = given & {"ratio", "samples", "stratified", "resample"}
    if named := drawing | (given & {"calibration"}):
        if "calibration_data" in given and not values["calibration_data"]:
            raise click.UsageError(f"expected --no-calibration-data or --{min(named)}, got both")
        values["calibration_data"] = True
    if {"ratio", "samples"} <= given:
        raise click.UsageError("expected --ratio or --samples, got both")
    if drawing and "calibration" in given:
        raise click.UsageError(f"expected --calibration or --{min(drawing)}, got both")
    if "ratio" in given:
        values["samples"] = None
    if drawing:
        values["calibration"] = None


def settle_levels(values: dict) -> None:
    """Let a number of levels on the command line win over a configuration's choice of levels."""
    given = typed(values)
    if "kbits" in given and values["kbits"] != AUTO and "target_bits" not in given:
        values["target_bits"] = None


def training_recipe(values: dict[str, Any]) -> TrainingRecipe:
    """The recipe that `training_options` and --batch-size ask for; raises `UsageError` where it cannot be used."""
    return TrainingRecipe(**{entry.name: values[entry.name] for entry in fields(TrainingRecipe)})
