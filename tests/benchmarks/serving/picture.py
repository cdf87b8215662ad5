"""Draws the contest's table: requests a second at the most connections, and the latency of one, as bars."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tests.benchmarks.serving import models, ours
from tests.benchmarks.serving.standings import COLUMNS, JSON, LEAST, MOST

from toprope_training.svg import BLUE, GREY, INK, draw, style

NAME = "serving"
TITLE = "Requests a second and latency of servers over the same models"
_PANELS = (
    (models.SMALL, f"req/s at {MOST}", f"small, JSON, req/s at {MOST}"),
    (models.SMALL, f"p50 µs at {LEAST}", "small, JSON, p50 µs at 1"),
    (models.HEAVY, f"req/s at {MOST}", f"weight-bound, req/s at {MOST}"),
)
_WIDTH, _BAR = 11.0, 0.26
# Room for the figure behind the longest bar, as a factor on a logarithmic axis.
_ROOM = 5.0


def bars(rows: Sequence[Sequence[str]], model: str, column: str) -> list[tuple[str, float]]:
    """Return server and figure of each row of a model that has one, in the table's order."""
    place = COLUMNS.index(column)
    wanted = f"{models.TITLES[model]}, {JSON}"
    return [(row[1], float(row[place])) for row in rows if row[0] == wanted and row[place]]


def svg(rows: Sequence[Sequence[str]]) -> str:
    """Return an SVG file of the rows of `serving/peers`; the same rows give the same bytes."""
    panels = [(bars(rows, model, column), title) for model, column, title in _PANELS]
    with style():
        figure = Figure(figsize=(_WIDTH, 0.9 + _BAR * max(len(found) for found, _ in panels)), layout="constrained")
        for axes, (found, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            _panel(axes, found, title)
        alt = "; ".join(f"{title}: {', '.join(f'{name} {value:.0f}' for name, value in found)}" for found, title in panels)
        return draw(figure, NAME, TITLE, alt).alone


def _panel(axes: Axes, found: Sequence[tuple[str, float]], title: str) -> None:
    names, values = [name for name, _ in found], [value for _, value in found]
    colours = [BLUE if name.startswith(ours.TITLE) else GREY for name in names]
    places = range(len(found))
    axes.barh(places, values, color=colours, height=0.7)
    for place, value in zip(places, values, strict=True):
        axes.text(value, place, f" {value:.0f}", va="center", color=INK, fontsize=8)
    axes.set_yticks(list(places), names, fontsize=8)
    axes.invert_yaxis()
    if values:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, max(values) * _ROOM)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_title(title)
