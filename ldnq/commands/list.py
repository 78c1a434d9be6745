"""`ldnq list`."""

import click

from ldnq.commands import console


@click.command("list", short_help="Show the names that options accept.")
@click.argument("what", type=click.Choice(["models", "datasets", "solvers", "presets", "formats"]))
def list_command(what: str) -> None:
    """Show the names that options accept.

    \b
    ldnq list models
    """
    if what == "models":
        from ldnq.models import models

        rows = [(name, f"{models.get(name).image_size}", models.get(name).default_dataset) for name in models]
        console.table(rows, ("model", "pixels", "usual dataset"))
        click.echo("any network of your own: --model package.module:factory")
    elif what == "datasets":
        from ldnq.datasets import datasets

        console.table([(name, datasets.get(name).summary) for name in sorted(datasets)], ("dataset", "what it is"))
    elif what == "solvers":
        from ldnq.solvers import solvers

        console.table([(name, _summary(solvers.get(name))) for name in sorted(solvers)], ("solver", "what it does"))
    elif what == "formats":
        from ldnq.formats import formats

        console.table([(name, _summary(formats.get(name))) for name in formats], ("format", "what it is"))
    else:
        from ldnq.presets import presets

        console.table([(name, presets.get(name).summary) for name in presets], ("preset", "what it does"))


def _summary(entry: type) -> str:
    """The first line of what it says of itself."""
    return entry.__doc__.strip().splitlines()[0]
