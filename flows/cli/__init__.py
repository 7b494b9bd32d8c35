"""The command line: ``discovery-loop VERB``. The verbs live in the modules of this folder.

Heavy libraries are imported inside the verbs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows.console import print_error
from loop.errors import DiscoveryLoopError
from loop.io.disk import ADVICE, is_full


class GuardedGroup(TyperGroup):
    """Turns every failure into one message and an exit code: 1 errors, 2 usage, 130 interrupted."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            print_error(f"interrupted. {_way_on(ctx.invoked_subcommand)}")
            raise typer.Exit(130) from None
        except DiscoveryLoopError as error:
            print_error(str(error))
            raise typer.Exit(1) from None
        except MemoryError:
            print_error("out of memory: use a smaller batch, pool or number of workers")
            raise typer.Exit(1) from None
        except OSError as error:
            if is_full(error):
                print_error(f"{error.filename or 'a file'} cannot be written: {ADVICE}.")
                raise typer.Exit(1) from None
            print_error(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
            raise typer.Exit(1) from None
        except Exception as error:
            if hasattr(error, "exit_code"):  # a usage error, which prints itself
                raise
            if is_full(error, Path.cwd()):
                print_error(f"a file cannot be written: {ADVICE}.")
                raise typer.Exit(1) from None
            print_error(
                f"unexpected {type(error).__name__}: {error}\nThe traceback is in {write_log()}; please report it."
            )
            raise typer.Exit(1) from None


def _way_on(verb: str | None) -> str:
    """How an interrupted verb is continued."""
    if verb in ("run", "resume"):
        return "Nothing recorded is lost; to continue: discovery-loop resume RESULTS_FOLDER"
    if verb in ("pretrain", "finetune"):
        return (
            "To continue from its last checkpoint, repeat the command with --resume; without one, repeat it as it was."
        )
    return "Repeat the command: what it had kept of finished work is not done again."


def write_log() -> Path:
    """Write the traceback of the exception being handled to a log file; returns its path."""
    from flows.hiding import hidden
    from flows.paths import state_dir

    path = state_dir() / f"error-{time.strftime('%Y%m%d-%H%M%S')}.log"
    path.write_text(hidden(f"{sys.argv}\n{traceback.format_exc()}"), encoding="utf-8")
    return path


app = typer.Typer(
    cls=GuardedGroup,
    name="discovery-loop",
    help="Discover inorganic crystals in a closed loop: generate, select, label, learn; round after round.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(value: bool) -> None:
    """Print the version and exit."""
    if value:
        from importlib.metadata import version

        typer.echo(f"discovery-loop {version('discovery-loop')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Discover inorganic crystals in a closed loop: generate, select, label, learn; round after round."""
    if not sys.warnoptions:  # libraries' warnings are for developers: python -W default -m flows.cli shows them
        logging.captureWarnings(True)
        logging.getLogger("py.warnings").addHandler(logging.NullHandler())
        logging.getLogger("py.warnings").propagate = False


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        sys.exit(141)


from flows.cli import (  # noqa: E402
    benchmarks,
    campaign,
    dft,
    generator,
    operate,
    oracles,
    potential,
    properties,
    tables,
)

for group in (campaign, generator, oracles, properties, tables, dft, operate, potential, benchmarks):
    group.register(app)
