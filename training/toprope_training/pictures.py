"""The pictures of a release's report, drawn from the manifest and from what was measured beside it.

Every picture says in its alternative text what can be seen in it. Colours are never the only sign: places have their own
markers, what is over a limit is filled otherwise. No disk, no network, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from toprope_shared.manifest import Calibration, Manifest, Placement, Variant
from toprope_training import svg
from toprope_training.measurements import Cascade, Confusion, Errors, Measurements, Parity, Reliability
from toprope_training.svg import BLUE, GREEN, GREY, INK, ORANGE, PAPER, RED, Picture

# Above so many classes a matrix can't be read; the most confused pairs stand in a table instead.
MOST_CLASSES = 25
# What differs less than this, in millionths, is drawn here: a logarithm has no zero.
LEAST_PPM = 0.01
# Accuracy above and below a curve, so that a flat one is drawn flat and not as noise.
LEAST_ROOM = 0.005
WIDTH = 9.0
ROW = 0.3
_PLACES = {Placement.EDGE: (BLUE, "o"), Placement.BOTH: (GREEN, "D"), Placement.CLOUD: (ORANGE, "s")}


@dataclass(frozen=True, slots=True)
class Pictures:
    """All pictures of a report; None or empty where nothing was measured."""

    variants: Picture | None
    parity: Picture | None
    confusions: tuple[Picture, ...]
    errors: tuple[Picture, ...]
    reliability: tuple[Picture, ...]
    cascades: tuple[Picture, ...]

    def all(self) -> tuple[Picture, ...]:
        """Return every picture, as they stand in the report."""
        first = tuple(picture for picture in (self.variants, self.parity) if picture)
        return first + self.confusions + self.errors + self.reliability + self.cascades


def draw(manifest: Manifest, measured: Measurements | None) -> Pictures:
    """Draw every picture that there are numbers for."""
    seen = measured or Measurements(0)
    calibrations = {variant.name: variant.calibration for variant in manifest.variants}
    small = [confusion for confusion in seen.confusion if len(confusion.counts) <= MOST_CLASSES]
    with svg.style():
        return Pictures(
            variants(manifest),
            parity(manifest, seen.parity),
            tuple(confusion(one, manifest.labels, index) for index, one in enumerate(small)),
            tuple(errors(one, index) for index, one in enumerate(seen.errors)),
            tuple(reliability(one, index) for index, one in enumerate(seen.reliability)),
            tuple(cascade(one, calibrations.get(one.variant), index) for index, one in enumerate(seen.cascades)),
        )


def variants(manifest: Manifest) -> Picture | None:
    """Draw each measured variant's metric, size and latency, one line a variant."""
    pairs = [(variant, variant.measured) for variant in manifest.variants if variant.measured]
    if not pairs:
        return None
    shown = [variant for variant, _ in pairs]
    figure = Figure(figsize=(WIDTH, 1.25 + ROW * len(shown)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)
    better = "higher" if manifest.metric.higher_is_better else "lower"
    metrics = [measured.metric for _, measured in pairs]
    sizes = [variant.artifact.length for variant in shown]
    latencies = [measured.latency_us for _, measured in pairs]
    _dots(left, shown, metrics, f"{svg.plain(manifest.metric.name)}\n({better} is better)")
    _dots(middle, shown, sizes, "size in bytes\n(smaller is better)", _count)
    slower = [measured.slower_than_float for _, measured in pairs]
    _dots(right, shown, latencies, "one row in µs\n(smaller is better)", _count, hollow=slower)
    left.margins(x=0.12)
    if min(metrics) == max(metrics):
        room = abs(metrics[0]) / 100 or 1
        left.set_xlim(metrics[0] - room, metrics[0] + room)
    _name_rows(left, [variant.name for variant in shown])
    _legend(figure, _place_marks(shown, hollow=any(slower)))
    alt = (
        f"Three columns of dots, one line a variant: {manifest.metric.name} from {min(metrics):.4g} to {max(metrics):.4g}, "
        f"size from {min(sizes):,} to {max(sizes):,} bytes, latency from {min(latencies):,.1f} to {max(latencies):,.1f} µs. "
        "The table of variants has the same numbers."
    )
    return svg.draw(figure, "variants", f"The variants compared: {manifest.metric.name}, size and latency", alt)


def parity(manifest: Manifest, measured: Sequence[Parity]) -> Picture | None:
    """Draw how far each variant is from its reference on each engine, against its limit."""
    if not measured:
        return None
    limits = {(gate.variant, gate.name): gate.limit for gate in manifest.gates}
    figure = Figure(figsize=(WIDTH, 1.25 + ROW * len(measured)), layout="constrained")
    axes = figure.subplots()
    over: list[str] = []
    for row, one in enumerate(measured):
        least, median, high, higher, worst = (max(LEAST_PPM, value) for value in one.quantiles_ppm)
        limit = limits.get((one.variant, f"parity on {one.engine}"))
        bad = limit is not None and worst > limit
        over += [f"{one.variant} on {one.engine}"] if bad else []
        axes.plot([least, worst], [row, row], color=BLUE, linewidth=1, alpha=0.6, solid_capstyle="round")
        axes.plot([median, higher], [row, row], color=BLUE, linewidth=4, alpha=0.6, solid_capstyle="butt")
        axes.plot([median], [row], "|", color=INK, markersize=9, markeredgewidth=1.6)
        axes.plot([high], [row], "|", color=INK, markersize=5)
        axes.plot([worst], [row], "X" if bad else "o", color=RED if bad else BLUE, markersize=7 if bad else 5)
        if limit is not None:
            axes.plot([limit], [row], "|", color=RED, markersize=13, markeredgewidth=2.5)
    axes.set_xscale("log")
    axes.set_xlim(left=max(LEAST_PPM, min(one.quantiles_ppm[1] for one in measured) / 10))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    axes.grid(axis="x")
    axes.set_xlabel("distance from the reference in millionths, row by row of the holdout")
    _name_rows(axes, [f"{one.variant} on {one.engine}" for one in measured])
    _legend(figure, _parity_marks(bool(over)))
    told = f"over the limit: {', '.join(over)}" if over else "none is over its limit"
    alt = f"One line for each of {len(measured)} pairs of variant and engine on a logarithmic scale; {told}."
    return svg.draw(figure, "parity", "Parity by variant and engine", alt)


def confusion(measured: Confusion, labels: Sequence[str], index: int) -> Picture:
    """Draw which class was called which; the shade is the share of the true class's rows."""
    count = len(measured.counts)
    names = [svg.plain(label, 16) for label in labels] if len(labels) == count else [str(number) for number in range(count)]
    side = 1.6 + max(2.0, 0.36 * count)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    for true, row in enumerate(measured.counts):
        for called, rows in enumerate(row):
            if rows:
                _cell(axes, called, true, rows, rows / sum(row))
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal")
    axes.set(xticks=range(count), yticks=range(count), xlabel="called", ylabel="true class")
    upright = max(len(name) for name in names) > 2
    axes.set_xticklabels(names, rotation=90 if upright else 0)
    axes.set_yticklabels(names)
    axes.tick_params(length=0)
    wrong = sum(map(sum, measured.counts)) - sum(row[place] for place, row in enumerate(measured.counts))
    alt = f"Matrix of {count} classes: {wrong} of {sum(map(sum, measured.counts))} rows were called another class."
    return svg.draw(figure, f"confusion-{index}", f"{measured.variant}: which class was called which", alt)


def errors(measured: Errors, index: int) -> Picture:
    """Draw the histogram of output minus target."""
    figure = Figure(figsize=(4.4, 2.9), layout="constrained")
    axes = figure.subplots()
    axes.stairs(measured.counts, measured.edges, fill=True, color=BLUE, alpha=0.55)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set(xlabel="output minus target", ylabel="values")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y")
    most = max(range(len(measured.counts)), key=measured.counts.__getitem__)
    alt = (
        f"Histogram of {sum(measured.counts):,} errors from {measured.edges[0]:.4g} to {measured.edges[-1]:.4g}; most are "
        f"between {measured.edges[most]:.4g} and {measured.edges[most + 1]:.4g}."
    )
    return svg.draw(figure, f"errors-{index}", f"{measured.variant}: errors on the holdout", alt)


def reliability(measured: Reliability, index: int) -> Picture:
    """Draw how often each calibrated confidence is right, and how many rows there are of it."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = len(measured.counts)
    edges = [number / bins for number in range(bins + 1)]
    above.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="as sure as it is right")
    filled = [number for number, rows in enumerate(measured.counts) if rows]
    above.bar(
        [edges[number] for number in filled],
        [measured.accuracy[number] for number in filled],
        1 / bins,
        align="edge",
        color=BLUE,
        alpha=0.3,
        linewidth=0,
    )
    points = [measured.confidence[number] for number in filled], [measured.accuracy[number] for number in filled]
    above.plot(*points, "o-", color=BLUE, markersize=4.5, linewidth=1.2, label="measured")
    above.set(xlim=(0, 1), ylim=(0, 1.03), ylabel="share that is right")
    above.legend(loc="upper left")
    above.grid(axis="y")
    below.stairs(measured.counts, edges, fill=True, color=ORANGE, alpha=0.8)
    below.set(xlabel="confidence, calibrated", ylabel="rows")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    change = f"expected calibration error {measured.before:.3f} before, {measured.after:.3f} after"
    figure.suptitle(change, x=0.02, horizontalalignment="left", fontsize=10)
    alt = f"Share of right answers against confidence in {bins} bins of {sum(measured.counts):,} rows; {change}."
    return svg.draw(figure, f"reliability-{index}", f"{measured.variant}: is it as sure as it is right?", alt)


def cascade(measured: Cascade, calibration: Calibration | None, index: int) -> Picture:
    """Draw the accuracy of edge and cloud together against the share that is sent, with the chosen threshold marked."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    points = sorted(measured.points, key=lambda point: (point.sent, point.accuracy))
    sent, accuracy = [point.sent for point in points], [point.accuracy for point in points]
    chosen = measured.chosen
    axes.axhline(
        measured.cloud, color=ORANGE, linewidth=1.4, linestyle=(0, (1, 1.5)), label=f"cloud alone {measured.cloud:.4f}"
    )
    axes.plot(sent, accuracy, color=BLUE, linewidth=1.8, label="edge and cloud together")
    axes.axhline(measured.edge, color=GREY, linewidth=1.4, linestyle=(0, (5, 3)), label=f"edge alone {measured.edge:.4f}")
    mark = f"tau {chosen.tau:.3f}, {grounds(calibration)}:\n{percent(chosen.sent)} sent, accuracy {chosen.accuracy:.4f}"
    axes.plot([chosen.sent], [chosen.accuracy], "D", color=RED, markersize=7, markeredgecolor=PAPER, label=mark)
    axes.set(xlim=(-0.02, 1.02), xlabel="share sent to the cloud", ylabel="accuracy")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    low, high = min(*accuracy, measured.edge, measured.cloud), max(*accuracy, measured.edge, measured.cloud)
    room = max(LEAST_ROOM, 0.12 * (high - low))
    axes.set_ylim(low - room, min(high + room, 1 + room / 4))
    axes.grid()
    _legend(figure, axes.get_legend_handles_labels()[0], below=True)
    alt = (
        f"Accuracy goes from {measured.edge:.4f} (edge alone) to {measured.cloud:.4f} (cloud alone) with the share that is "
        f"sent; at tau {chosen.tau:.3f}, {grounds(calibration)}, {percent(chosen.sent)} are sent and both together have "
        f"{chosen.accuracy:.4f}."
    )
    title = f"{measured.variant}, with {measured.cloud_variant} in the cloud: what asking costs and brings"
    return svg.draw(figure, f"cascade-{index}", title, alt)


def grounds(calibration: Calibration | None) -> str:
    """Say what a threshold rests on."""
    if calibration is None:
        return "not in the manifest"
    return f"{'certified' if calibration.certified else 'heuristic'} on {calibration.rows:,} rows"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.1f} %"


def _cell(axes: Axes, x: int, y: int, rows: int, share: float) -> None:
    colour = BLUE if x == y else RED
    # A few wrong rows must be seen beside many right ones, so the shade of a mistake starts higher.
    shade = 0.08 + 0.42 * share if x == y else 0.25 + 0.5 * share
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, alpha=shade, linewidth=0))
    axes.text(x, y, str(rows), ha="center", va="center", fontsize=8 if rows < 1000 else 6)


def _dots(
    axes: Axes,
    shown: Sequence[Variant],
    values: Sequence[float],
    title: str,
    text: Callable[[float], str] | None = None,
    hollow: Sequence[bool] = (),
) -> None:
    for row, (variant, value) in enumerate(zip(shown, values, strict=True)):
        colour, marker = _PLACES[variant.placement]
        face = "none" if hollow and hollow[row] else colour
        axes.plot([value], [row], marker, color=colour, markerfacecolor=face, markeredgewidth=1.5, markersize=7)
    axes.set_title(title)
    axes.tick_params(axis="y", length=0)
    axes.grid()
    if text is None:
        axes.xaxis.set_major_locator(MaxNLocator(4))
        return
    if min(values) > 0 and (ratio := max(values) / min(values)) >= 10:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 30 else (1, 3) if ratio < 300 else (1,)))
        axes.minorticks_off()
    else:
        axes.set_xlim(0, max(values) * 1.15 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _place_marks(shown: Sequence[Variant], *, hollow: bool) -> list[Line2D]:
    used = {variant.placement for variant in shown}
    words = {Placement.EDGE: "runs at the edge", Placement.BOTH: "edge and cloud", Placement.CLOUD: "in the cloud"}
    marks = [_mark(marker, colour, words[place]) for place, (colour, marker) in _PLACES.items() if place in used]
    return [*marks, _mark("o", BLUE, "hollow: slower than float32", face="none")] if hollow else marks


def _parity_marks(over: bool) -> list[Line2D]:
    marks = [
        Line2D([], [], color=BLUE, linewidth=1, alpha=0.6, label="all rows"),
        Line2D([], [], color=BLUE, linewidth=4, alpha=0.6, label="median to 99 %"),
        _mark("|", INK, "median, 90 %"),
        _mark("o", BLUE, "worst row"),
        _mark("|", RED, "limit", size=13, edge=2.5),
    ]
    return [*marks, _mark("X", RED, "worst row, over the limit")] if over else marks


def _mark(marker: str, colour: str, label: str, *, face: str = "", size: float = 7, edge: float = 1.5) -> Line2D:
    mark = Line2D([], [], marker=marker, color=colour, linestyle="none", label=label, markersize=size)
    mark.set(markerfacecolor=face or colour, markeredgewidth=edge)
    return mark


def _legend(figure: Figure, marks: Sequence[Artist], *, below: bool = False) -> None:
    if below:
        figure.legend(handles=marks, loc="outside lower left")
    else:
        figure.legend(handles=marks, loc="outside upper left", ncols=len(marks))


def _count(value: float) -> str:
    for limit, sign in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:g}{sign}"
    return f"{value:g}"
