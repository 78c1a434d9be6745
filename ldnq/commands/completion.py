"""Names for the shell to complete."""

from collections.abc import Callable

import click

from ldnq import catalogue


def complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Completes names of one `kind`; of several with commas between them the last."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        names = [entry.name for entry in catalogue.entries(kind)]
        return [f"{before}{comma}{name}" for name in names if name.startswith(last)]

    return complete
