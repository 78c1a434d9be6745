"""`ldnq list`."""

from collections.abc import Callable

import click

from ldnq import catalogue
from ldnq.commands import console


def _models() -> list[tuple]:
    return [
        (entry.name, str(entry.fields["image_size"]), entry.fields["default_dataset"], entry.summary, entry.paper)
        for entry in catalogue.entries("models")
    ]


def _methods() -> list[tuple]:
    layerwise = next(stage for stage in catalogue.stages() if stage.name == "layerwise")
    trained = [(entry.name, "ldnq qat", entry.summary, entry.paper) for entry in catalogue.entries("methods")]
    return [("ldnq", "ldnq quantize", layerwise.summary, layerwise.paper), *trained]


def _sorted(kind: str) -> list[tuple]:
    return sorted((entry.name, entry.summary, entry.paper) for entry in catalogue.entries(kind))


def _without_papers(kind: str) -> list[tuple]:
    return [(entry.name, entry.summary) for entry in catalogue.entries(kind)]


# What can be listed: how its rows are found, and what stands above them.
LISTS: dict[str, tuple[Callable[[], list[tuple]], tuple[str, ...]]] = {
    "models": (_models, ("model", "pixels", "usual dataset", "what it is", "paper")),
    "datasets": (lambda: _sorted("datasets"), ("dataset", "what it is", "paper")),
    "methods": (_methods, ("method", "of", "what it does", "paper")),
    "stages": (
        lambda: [(stage.name, stage.summary, stage.paper) for stage in catalogue.stages()],
        ("stage", "what it does", "paper"),
    ),
    "solvers": (lambda: _sorted("solvers"), ("solver", "what it does", "paper")),
    "presets": (lambda: _without_papers("presets"), ("preset", "what it does")),
    "formats": (lambda: _without_papers("formats"), ("format", "what it is")),
}


@click.command("list", short_help="Show the names that options accept.")
@click.argument("what", type=click.Choice(list(LISTS)))
def list_command(what: str) -> None:
    """Show the names that options accept, what they stand for and where it was published.

    \b
    ldnq list models
    ldnq list solvers
    """
    find, columns = LISTS[what]
    console.table(find(), columns)
    if what == "models":
        click.echo("any network of timm: --model timm/NAME; of your own: --model package.module:factory")
