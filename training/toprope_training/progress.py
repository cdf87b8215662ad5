"""Shows progress to people: a bar for each step on a terminal, a plain sentence for each step elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from toprope_training import recipe


@contextmanager
def shown(console: Console | None = None) -> Iterator[recipe.Progress]:
    """Give a function to tell progress to; it writes to standard error unless a console is given."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Sentences(console)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        told = _Bars(bars)
        yield told
        told.end()


class _Sentences:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        if text != self._last:
            self._console.print(f"{text} …", highlight=False)
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
