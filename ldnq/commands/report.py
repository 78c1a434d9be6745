"""`ldnq report`."""

from pathlib import Path

import click

from ldnq.config import COMPARISON


@click.command("report", short_help="Write a run's report anew, or compare several runs.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    help=f"[default: report.html in the run's folder; {COMPARISON} of several runs]",
)  # fmt: skip
def report_command(runs: tuple[Path, ...], output: Path | None) -> None:
    """Write the report of a run anew from what is in its folder, or one page that compares several runs.

    \b
    ldnq report results/RUN
    ldnq report results/resnet20-*-k* -o levels.html
    """
    if output is not None and (not output.name or output.is_dir()):
        raise click.UsageError(f"expected a file for --output, got {output}")
    from ldnq.report import write_comparison, write_report

    click.echo(write_report(runs[0], output) if len(runs) == 1 else write_comparison(runs, output or COMPARISON))
