"""Names for the shell to complete, read from the source: importing what they stand for would take seconds a key."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import click

PACKAGE = Path(__file__).parent.parent
# Where things of a kind register themselves by name.
SOURCES = {
    "models": "models/*.py",
    "datasets": "datasets/*.py",
    "solvers": "solvers/*.py",
    "presets": "presets.py",
    "formats": "formats/*.py",
}


def registered(kind: str) -> list[str]:
    """The names in the registry called `kind`, without importing it."""
    entry = re.compile(rf'\b{kind}\.(?:add|register)\(\s*"([^"]+)"')
    found = [name for path in sorted(PACKAGE.glob(SOURCES[kind])) for name in entry.findall(path.read_text("utf-8"))]
    return found + (_torchvision() if kind == "models" else [])


def _torchvision() -> list[str]:
    spec = find_spec("torchvision")
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else Path()
    entry = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
    return [name for path in sorted(folder.glob("*.py")) for name in entry.findall(path.read_text("utf-8"))]


def complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Completes names of one `kind`; of several with commas between them the last."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in registered(kind) if name.startswith(last)]

    return complete
