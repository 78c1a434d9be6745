"""`ldnq env`."""

import json
import os
import platform
import re
import sys
from importlib import metadata

import click

import ldnq
from ldnq.commands import console

VARIABLES = ("LDNQ_DATA", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TORCH_HOME", "NO_COLOR")


@click.command("env", short_help="Show versions and devices, for bug reports.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def env_command(as_json: bool) -> None:
    """Show versions, devices and threads: what a bug report should begin with.

    \b
    ldnq env
    ldnq env --json
    """
    with console.progress():
        found = _environment()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [(name, _text(value)) for name, value in found.items() if name != "extras"]
    console.table(rows)
    lines = [(extra, package, version or "-") for extra, parts in found["extras"].items() for package, version in parts]
    console.table(lines, ("extra", "package", "version"))


def _environment() -> dict:
    from ldnq import runtime

    required, extras = _requirements()
    return {
        "ldnq": ldnq.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: _version(package) for package in required},
        **runtime.environment(),
        "bf16": runtime.mixes_in_training("cpu", runtime.RuntimeConfig()),
        "devices": runtime.devices(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "installed in": os.path.dirname(ldnq.__file__),
        "interpreter": sys.executable,
        "extras": {extra: [(package, _version(package)) for package in parts] for extra, parts in extras.items()},
    }


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The packages that ldnq needs, and those that its extras bring, as its installed metadata names them."""
    try:
        lines = metadata.requires("ldnq") or []
    except metadata.PackageNotFoundError:
        return ["torch", "torchvision"], {}
    required: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in lines:
        package = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", line)
        (extras.setdefault(extra[1], []) if extra else required).append(package)
    return required, extras


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={entry}" for name, entry in value.items()) or "-"
    return ", ".join(value) if isinstance(value, list) else "-" if value is None else str(value)
