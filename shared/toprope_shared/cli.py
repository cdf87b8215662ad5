"""The command `toprope`: each installed room adds its subcommands through the entry-point group `toprope.commands`.

Exit codes: 0 done, 1 failed, 2 the input was refused. No stack trace reaches a user unless `TOPROPE_DEBUG` is set.
What runs for months is started without the command line's library, see `quick.py`.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from toprope_shared import __version__, quick
from toprope_shared.errors import InputError, RequestError, TopropeError

if TYPE_CHECKING:
    import typer

GROUP = "toprope.commands"
LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def build_app() -> typer.Typer:
    """Return the command line with the subcommands of all installed rooms."""
    import importlib.metadata

    import typer

    app = typer.Typer(
        name="toprope",
        help="Train models above, run them on the edge, and be caught from above when the edge can't.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
        if version:
            typer.echo(f"toprope {__version__}")
            raise typer.Exit

    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            part: typer.Typer = entry.load()
        except ImportError as error:  # one broken room must not take the others' commands down
            typer.echo(f"toprope: the command {entry.name} can't be loaded: {error}", err=True)
            continue
        if len(part.registered_commands) == 1 and part.registered_callback is None and not part.registered_groups:
            app.command(entry.name)(part.registered_commands[0].callback)  # type: ignore[type-var]
        else:
            app.add_typer(part, name=entry.name)
    return app


def setup_logging(level: str = "info") -> None:
    """Send the log to standard error, one line an event.

    Raises:
        InputError: `level` is not one of debug, info, warning, error.
    """
    levels = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
    if level not in levels:
        raise InputError(f"the log level {level!r} is none of {', '.join(levels)}")
    logging.basicConfig(level=levels[level], format=LOG_FORMAT, stream=sys.stderr, force=True)


def main() -> None:
    """Run the command and turn errors into sentences and exit codes."""
    try:
        start = quick.find(sys.argv[1:])
        if start:
            start()
        else:
            build_app()()
    except TopropeError as error:
        if os.environ.get("TOPROPE_DEBUG"):
            raise
        print(f"toprope: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InputError | RequestError) else 1) from None
    except OSError as error:
        if os.environ.get("TOPROPE_DEBUG"):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"toprope: the system refused: {error.strerror or error}{where}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":  # so that the cloud can start it without knowing where the script stands
    main()
