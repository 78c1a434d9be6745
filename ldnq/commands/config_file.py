"""`--config`: a TOML or JSON file whose names are those of the command's options; the command line wins."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ldnq.config import option_names, parts
from ldnq.errors import UsageError
from ldnq.registry import unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLES = {*parts(), "quantization", "training"}
# What a run depends on or was called by, whether or not a command has an option for it: one file does for all commands.
SHARED = set(option_names()) | {"command"}
# They name files of this kind themselves.
IDLE = ("config", "resume")


def read(path: Path) -> dict[str, Any]:
    """The entries of the file by their names, with underscores; the tables of a run's config.json are dissolved.

    Raises `UsageError` where the file cannot be read or is neither TOML nor JSON.
    """
    kind = "TOML" if path.suffix == ".toml" else "JSON"
    try:
        text = path.read_text(encoding="utf-8")
        entries = tomllib.loads(text) if kind == "TOML" else json.loads(text)
    except OSError as error:
        raise UsageError(f"cannot read configuration {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"expected {kind} in configuration {path}, found something else: {error}") from error
    if not isinstance(entries, dict):
        raise UsageError(f"expected names and values in configuration {path}, found a {type(entries).__name__}")
    return dict(_flat(entries))


def _flat(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        if name in TABLES and isinstance(value, dict):
            yield from _flat(value)
        elif value is not None:
            yield name.replace("-", "_"), value


def use_config(ctx: click.Context, path: Path) -> None:
    """Let what the file says be the defaults of the command, so that options given beside it win."""
    own = [option for option in ctx.command.params if isinstance(option, click.Option) and option.name not in IDLE]
    options = {name: option for option in own for name in _names(option)}
    entries = read(path)
    for name in entries:
        if name not in options and name not in SHARED:
            raise UsageError(f"configuration {path}: {unknown_name('option', name, sorted(options))}")
    known = {name: value for name, value in entries.items() if name in options}
    try:
        ctx.default_map = {options[name].name: _as_typed(options[name], value) for name, value in known.items()}
    except ValueError as error:
        raise UsageError(f"configuration {path}: {error}") from error


def _names(option: click.Option) -> set[str]:
    """What an option may be called in a file: as on the command line, or as the configuration's field."""
    return {option.name} | {word.lstrip("-").replace("-", "_") for word in option.opts if word.startswith("--")}


def _as_typed(option: click.Option, value: Any) -> Any:
    """`value` as the command line would have it, in words: click is strict with those alone."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false for {option.name}, got {value!r}")
        return value
    if isinstance(value, bool) or (isinstance(value, dict) and not option.multiple):
        raise ValueError(f"expected a value for {option.name}, got {value!r}")
    if isinstance(value, dict):
        return [f"{name}={json.dumps(entry)}" for name, entry in value.items()]
    words = [str(entry) for entry in value] if isinstance(value, list) else [str(value)]
    return words if option.multiple else ",".join(words)


def _go_on(ctx: click.Context, param: click.Parameter, run: Path | None) -> Path | None:
    if run is not None:
        use_config(ctx, run / "config.json")
    return run


resume_option = click.option(
    "--resume", type=click.Path(path_type=Path), metavar="RUN", callback=_go_on, is_eager=True,
    help="Go on with the run in this folder, that was stopped; no other option is needed.",
)  # fmt: skip


def goes_on(resume: Path | None, output: Path | None) -> Path | None:
    """The folder to write to; raises `click.UsageError` where the two options name different ones."""
    if resume and output and output != resume:
        raise click.UsageError(f"--resume goes on in {resume}: leave out --output")
    return resume or output


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is not None:
        use_config(ctx, path)


config_option = click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", callback=_read_config, is_eager=True,
    expose_value=False, help="TOML or JSON with names of options, such as a run's config.json; options beside it win.",
)  # fmt: skip
