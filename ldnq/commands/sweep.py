"""`ldnq sweep`."""

import logging
from pathlib import Path
from typing import Any

import click

from ldnq.commands import console, options
from ldnq.commands.completion import complete
from ldnq.commands.config_file import config_option
from ldnq.commands.quantize import quantize_command
from ldnq.config import PROCESSES, RunConfig
from ldnq.errors import UsageError

log = logging.getLogger(__name__)

LOCAL_JOBS = 2

# Of the options of quantize, those that a sweep has in another form or no use for.
OWN = {"model", "method", "kbits", "target_bits", "seed", "output", "resume", "curves", *PROCESSES}
PASSED = [option for option in quantize_command.params if option.expose_value and option.name not in OWN]


@click.command("sweep", params=PASSED, short_help="Quantize with many settings, and compare.")
@config_option
@click.option(
    "--models", type=options.Several(click.STRING, "NAME,…", distinct=True), shell_complete=complete("models"),
    help="Networks; see 'ldnq list models'.",
)  # fmt: skip
@click.option(
    "--kbits",
    type=options.Several(click.INT, "K,…", distinct=True),
    default="3,5,7,9,11",
    show_default=True,
    help="Numbers of levels.",
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Draws of the calibration set.")
@click.option(
    "--launcher", type=click.Choice(["local", "slurm"]),
    help="Runs by processes of this machine, or as jobs of SLURM. [default: one after the other, here]",
)  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), help="Runs at once. [default: 2 local ones, all jobs of SLURM]")
@click.option(
    "--slurm", "slurm_options", multiple=True, metavar="NAME=VALUE", callback=options.parse_arguments,
    help="An option of sbatch, such as partition=gpu, gpus_per_node=1 or time=90 (minutes). Repeatable.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("results/sweep"), show_default=True, metavar="DIR",
    help="Folder of all runs; those that it holds are not run again.",
)  # fmt: skip
def sweep_command(
    models: tuple[str, ...],
    kbits: tuple[int, ...],
    seeds: int,
    launcher: str | None,
    jobs: int | None,
    slurm_options: dict[str, Any],
    output: Path,
    **values: Any,
) -> None:
    """Quantize every network with every number of levels and several draws of the calibration set.

    Takes every other option of 'ldnq quantize'. Stopped at any time, it goes on where it was when called again. The
    table of means is printed and kept as sweep.md, all runs as sweep.csv, the plot as sweep.svg, and comparison.html
    shows them side by side. With --launcher each run notes what it does in its folder, in log.txt; one that fails
    leaves the others alone.

    \b
    ldnq sweep --models resnet20 --dataset digits --kbits 3,5 --seeds 2 --preset fast
    ldnq sweep --models resnet20,resnet32 --kbits 3,5,7,9,11 --seeds 3
    ldnq sweep --models resnet20 --dataset digits --kbits 3,5 --preset fast --launcher local --jobs 2
    ldnq sweep --models resnet50 --launcher slurm --slurm partition=gpu --slurm gpus_per_node=1
    """
    if not models:
        raise click.UsageError("expected --models NAME,…; 'ldnq list models' shows the names")
    if jobs and not launcher:
        raise click.UsageError("expected --launcher local or slurm with --jobs, got none")
    if slurm_options and launcher != "slurm":
        raise click.UsageError("expected --launcher slurm with --slurm, got another or none")
    options.settle_calibration(values)
    configs = [RunConfig.from_options(values | {"model": models[0], "kbits": number}) for number in kbits]
    with console.progress():
        from ldnq.sweep import Sweep, no_runs
        from ldnq.tables import HEADER, plot

        launch = _launcher(launcher, jobs, slurm_options, output, configs[0])
        summaries, failed = Sweep(configs[0], models, kbits, range(seeds), output, launch)()
        if not summaries:
            raise no_runs(failed)
        files = ["sweep.md", "sweep.csv", "comparison.html"]
        try:
            plot(output / "sweep.svg", summaries)
            files.append("sweep.svg")
        except UsageError as error:
            log.warning("no plot: %s", error)
    console.table([summary.row() for summary in summaries], HEADER)
    console.table([("files", f"{output}: {', '.join(files)}, and a folder for each run")])
    if failed:
        raise no_runs(failed)


def _launcher(name: str | None, jobs: int | None, slurm: dict[str, Any], output: Path, config: RunConfig) -> Any:
    from ldnq.launchers import Local, Slurm, visible_gpus

    if name == "local":
        return Local(jobs or LOCAL_JOBS, visible_gpus() if config.runtime.device in ("auto", "cuda") else ())
    return Slurm(output / "slurm", jobs or 0, slurm) if name else None


# Its own options come first in the help.
sweep_command.params.sort(key=PASSED.__contains__)
