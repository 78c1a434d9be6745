"""Several processes of a command on this host, started and watched by what torchrun is made of."""

import logging
import signal
import sys
import uuid

import click

from ldnq import ranks

# Exit codes of processes that have said why they end.
SPOKEN = (1, 2, 3, 130)


def on_devices(ctx: click.Context, param: click.Parameter, number: int | None) -> int | None:
    """Start the command again in as many processes as `--devices` says, unless somebody has."""
    if number is None or number == 1 or ranks.started() > 1 or ctx.resilient_parsing:
        return number
    if ctx.params.get("num_nodes", 1) not in (None, 1):
        raise click.UsageError("expected torchrun or srun to start processes on several hosts: see docs/distributed.md")
    ctx.exit(_launch(number, ["-m", "ldnq", *ctx.meta["ldnq.words"]]))


def _launch(number: int, words: list[str]) -> int:
    """The exit code of `number` Python processes with these `words`, said in one line where they could not."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()
    config = LaunchConfig(
        1, 1, number, run_id=str(uuid.uuid4()), rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    try:
        elastic_launch(config, sys.executable)(*words)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        if spoken := [code for code in codes.values() if code in SPOKEN]:
            return min(spoken)
        rank, code = next(iter(codes.items()))
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        click.echo(f"error: rank {rank} ended by {how}", err=True)
        return 1
    except SignalException as error:
        return 128 + error.sigval
    finally:
        logging.disable(logging.NOTSET)
    return 0
