"""The command line: a group that loads the file of a command when it is called, and ends bad input in one line."""

import importlib
import os
import signal
import sys
import time
from typing import Any

import click

import ldnq
from ldnq import ranks
from ldnq.commands.console import configure
from ldnq.errors import LdnqError, lacks_memory

# OpenMP's idle threads otherwise spin, and two processes on one machine starve each other. Set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A connection that another process has closed is told of in one line, not by torch with where it was in C++.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# What several processes can work on together.
TOGETHER = ("quantize", "qat", "train", "evaluate")
# Exit code of a process that is asked to end.
ENDED = 128 + signal.SIGTERM
# Seconds.
PATIENCE = 5.0

COMMANDS = (
    "quantize",
    "qat",
    "sweep",
    "sensitivity",
    "evaluate",
    "inspect",
    "complexity",
    "report",
    "export",
    "sample",
    "train",
    "list",
    "env",
)


class CommandFiles(click.Group):
    """Command `name` lives in `ldnq/commands/<name>.py` as the object `<name>_command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"ldnq.commands.{name}"), f"{name}_command")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember the words for commands that write down how they were called."""
        ctx.meta["ldnq.words"] = list(args)
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and turn what the user can mend into one line on standard error and exit code 2."""
        # Asked to end, a process cleans up after itself as after Ctrl-C.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(ENDED))
        kwargs["standalone_mode"] = False
        if ranks.number():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, as long as the process
        try:
            status = super().main(*args, **kwargs)
            sys.exit(status if isinstance(status, int) else 0)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(2)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f" (see '{context.command_path} --help')" if context else ""
            _fail(" ".join(error.format_message().split()) + hint, 2)
        except LdnqError as error:
            _fail(" ".join(str(error).split()), 2)
        except OSError as error:
            _fail(f"{error.filename or 'file system'}: {error.strerror or error}", 2)
        except (click.Abort, KeyboardInterrupt) as error:
            # click puts its own exception in the place of the one that says what is kept.
            kept = getattr(error.__cause__ or error, "args", ()) or ["nothing was saved"]
            if not ranks.number():
                click.echo(f"interrupted: {kept[0]}", err=True)
                ranks.leave(130)
            sys.exit(130)
        except SystemExit as error:
            if error.code == ENDED:
                # Whoever starts the processes ends all when one has died.
                _await_loss()
            raise
        except (MemoryError, RuntimeError, ImportError) as error:
            if not lacks_memory(error):
                _await_loss()
                raise
            _fail("not enough memory: use a smaller --batch-size, fewer --samples or a smaller --image-size", 1)


def _await_loss() -> None:
    """Where another process of the run is gone, end here with a line that names it."""
    if ranks.size() == 1:
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ranks.await_loss()


def _fail(message: str, status: int) -> None:
    if ranks.number():
        # What ends all of them the first one says, and that ends the others.
        time.sleep(PATIENCE)
        message = f"rank {ranks.number()}: {message}"
    click.echo(f"error: {message}", err=True)
    ranks.leave(status)
    sys.exit(status)


EXIT_CODES = """\b
Exit codes:
  0    done
  1    a mistake of ldnq's own: report the traceback and what 'ldnq env' prints
  2    input that cannot be used, said in one line
  3    another process of the run is lost; the last line names it, and says what is saved
  130  interrupted; the last line says what is saved
"""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=CommandFiles, epilog=EXIT_CODES, context_settings=SETTINGS)
@click.option("-v", "--verbose", is_flag=True, help="Say more on the way.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors.")
@click.version_option(ldnq.__version__, prog_name="ldnq")
@click.pass_context
def main(ctx: click.Context, verbose: bool, quiet: bool) -> None:
    """Quantize a trained network to power-of-two weights with 1% of its training images.

    \b
    ldnq quantize --model resnet20 --dataset digits --kbits 3
    """
    configure(verbose, quiet)
    if ranks.started() > 1 and ctx.invoked_subcommand not in TOGETHER:
        names = f"{', '.join(TOGETHER[:-1])} or {TOGETHER[-1]}"
        raise click.UsageError(f"expected {names} in several processes, got {ctx.invoked_subcommand}: start it in one")
