"""`ldnq list`."""

import inspect
import re
from collections.abc import Callable

import click

from ldnq.commands import console

PAPER = re.compile(r"arXiv \d{4}\.\d{4,5}|[A-Z]{4,} \d{4}")


def _models() -> list[tuple]:
    from ldnq.models import models

    return [
        (name, f"{family.image_size}", family.default_dataset, family.summary, family.paper)
        for name, family in ((name, models.get(name)) for name in models)
    ]


def _datasets() -> list[tuple]:
    from ldnq.datasets import datasets

    return [(name, datasets.get(name).summary, datasets.get(name).paper) for name in sorted(datasets)]


def _methods() -> list[tuple]:
    from ldnq.quantizers import methods
    from ldnq.stages.layerwise import Layerwise

    rows = [("ldnq", "ldnq quantize", *_described(Layerwise))]
    return rows + [(name, "ldnq qat", *_described(methods.get(name))) for name in methods]


def _stages() -> list[tuple]:
    from ldnq.presets import STAGES

    return [(stage.__module__.rpartition(".")[2], *_described(stage)) for stage in STAGES]


def _solvers() -> list[tuple]:
    from ldnq.solvers import solvers

    return [(name, *_described(solvers.get(name))) for name in sorted(solvers)]


def _presets() -> list[tuple]:
    from ldnq.presets import presets

    return [(name, presets.get(name).summary) for name in presets]


def _formats() -> list[tuple]:
    from ldnq.formats import formats

    return [(name, _described(formats.get(name))[0]) for name in formats]


# What can be listed: how its rows are found, and what stands above them.
LISTS: dict[str, tuple[Callable[[], list[tuple]], tuple[str, ...]]] = {
    "models": (_models, ("model", "pixels", "usual dataset", "what it is", "paper")),
    "datasets": (_datasets, ("dataset", "what it is", "paper")),
    "methods": (_methods, ("method", "of", "what it does", "paper")),
    "stages": (_stages, ("stage", "what it does", "paper")),
    "solvers": (_solvers, ("solver", "what it does", "paper")),
    "presets": (_presets, ("preset", "what it does")),
    "formats": (_formats, ("format", "what it is")),
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
    with console.progress():
        rows = find()
    console.table(rows, columns)
    if what == "models":
        click.echo("any network of timm: --model timm/NAME; of your own: --model package.module:factory")


def _described(entry: type) -> tuple[str, str]:
    """The first sentence of what it says of itself, and the papers that it names."""
    text = " ".join((inspect.getdoc(entry) or "").split())
    papers = dict.fromkeys(PAPER.findall(text))
    # Neither "et al." nor a file's ending ends a sentence.
    return re.split(r"(?<!al)\.\s", text)[0].rstrip("."), ", ".join(papers)
