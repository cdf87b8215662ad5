"""Shows progress: bars with the time left on a terminal, a plain line for each step elsewhere, JSON lines for programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from toprope_training import recipe
from toprope_training.steps import Told
from toprope_training.styles import Style


@contextmanager
def shown(style: Style = Style.AUTO, console: Console | None = None) -> Iterator[recipe.Progress]:
    """Give a function to tell progress to; it writes to standard error unless a console is given."""
    console = console or Console(stderr=True)
    if style is Style.JSON:
        yield _Json(console)
    elif style is Style.LINES or not console.is_terminal:
        yield _Lines(console)
    else:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bars:
            told = _Bars(bars)
            yield told
            told.end()


class _Json:
    """One object a line: `text`, `done` and `total` (0: unknown)."""

    def __init__(self, console: Console) -> None:
        self._file = console.file

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        self._file.write(msgspec.json.encode(Told(text, done, total)).decode() + "\n")
        self._file.flush()


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        if text != self._last:
            self._console.print(f"{text} …", highlight=False, markup=False)
            self._last = text


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._text = ""
        self._task: TaskID | None = None

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        if text != self._text:
            self.end()
            self._text, self._task = text, self._bars.add_task(text, total=total or None)
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total or None)

    def end(self) -> None:
        """Fill the bar of the step that was told last."""
        if self._task is not None:
            self._bars.update(self._task, completed=1, total=1)
            self._bars.stop_task(self._task)
