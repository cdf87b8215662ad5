"""`toprope edge top`: looks at an agent again and again, and shows it in the terminal until q or Ctrl-C."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from toprope_edge.status import Status

LOOK_S = 2.0  # that an agent has to answer


def top(
    url: str = typer.Option("http://127.0.0.1:8501", help="The agent."),
    every: float = typer.Option(1.0, min=0.1, help="Seconds between two looks."),
    once: bool = typer.Option(False, "--once", help="Look once and stop; also where the output is no terminal."),
) -> None:
    """Show what an agent's models do: rates, times, fallbacks by reason, and the update under way; q ends it."""
    from rich.console import Console
    from rich.live import Live

    from toprope_edge.top import screen

    console = Console()
    before, looked = look(url), time.monotonic()
    if once or not console.is_terminal:
        console.print(screen(None, before, 0.0))
        return
    with _keys(), Live(screen(None, before, 0.0), console=console, screen=True, auto_refresh=False) as live:
        while not _quit_within(every):
            after, now = look(url), time.monotonic()
            live.update(screen(before, after, now - looked), refresh=True)
            before, looked = after, now


def look(url: str) -> Status:
    """Return an agent's status.

    Raises:
        LinkError: nobody answers there, or it is no agent.
    """
    import msgspec

    from toprope_edge.status import PATH, Status
    from toprope_shared.commands.client import Client
    from toprope_shared.errors import LinkError, NotFoundError

    client = Client(url, LOOK_S, advice="; start an agent with `toprope edge run` or give another --url")
    try:
        return msgspec.convert(client.get(PATH), Status)
    except (NotFoundError, msgspec.ValidationError) as error:
        raise LinkError(f"what answers at {url} is no agent of this version; give another --url") from error


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Let single keys through while this lasts, where there is a keyboard."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    kept = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, kept)


def _quit_within(seconds: float) -> bool:
    """Wait, and say whether q was pressed meanwhile."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and sys.stdin.read(1) in ("q", "Q")
