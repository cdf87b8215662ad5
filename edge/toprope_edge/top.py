"""What `toprope edge top` shows of an agent: rates and times between two looks at its status. Pure: values in, tables out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from toprope_edge.status import Status
from toprope_shared import buckets
from toprope_shared.messages import Fetching, RunningModel

MIB = 1 << 20
ENDED = ("IDLE", "COMMITTED", "DISCARDED", "ROLLED_BACK", "SUPERSEDED")


@dataclass(frozen=True, slots=True)
class Row:
    """One model.

    Attributes:
        rate: calls a second between the two looks; since the agent's start where there is one look only it is not known.
        p50_ms, p99_ms: of the calls between the looks; of all where there were none.
        fallbacks: answers that the edge alone did not give, by reason; since the agent's start.
        unanswered: calls that nobody answered, since the agent's start.
    """

    model: RunningModel
    rate: float | None
    p50_ms: float | None
    p99_ms: float | None
    fallbacks: dict[str, int]
    unanswered: int


def rows(before: Status | None, after: Status, seconds: float) -> Iterator[Row]:
    """Yield a row for each model that the device holds.

    Args:
        before: the look before; None at the first.
        after: the newest look.
        seconds: between the two.
    """
    for model in after.state.models:
        now, then = _durations(after, model.model), _durations(before, model.model) if before else Counter[int]()
        fresh = now - then
        if sum(now.values()) < sum(then.values()):  # the agent has started anew
            fresh = now
        times = sorted((fresh or now).items())
        p50, p99 = (buckets.quantile(times, share) for share in (0.5, 0.99))
        own = [one for one in after.calls if one.model == model.model]
        fallbacks: Counter[str] = Counter()
        for one in own:
            if one.reason and not one.code:
                fallbacks[one.reason] += one.count
        yield Row(
            model,
            sum(fresh.values()) / seconds if before and seconds > 0 else None,
            None if p50 is None else p50 * 1000,
            None if p99 is None else p99 * 1000,
            dict(fallbacks),
            sum(one.count for one in own if one.code),
        )


def _durations(status: Status, model: str) -> Counter[int]:
    found: Counter[int] = Counter()
    for one in status.calls:
        if one.model == model:
            found.update(dict(one.buckets))
    return found


def screen(before: Status | None, after: Status, seconds: float) -> Group:
    """Return everything that is shown: the device, its models, and the update under way."""
    state = after.state
    broker = "connected to the broker" if after.connected else "without a broker"
    head = [Text.assemble((state.device, "bold"), f"  {state.url}  channel {state.channel}, {broker}")]
    if after.frozen:
        head.append(Text(f"{after.frozen}: no update begins", "bold red"))
    if state.trust not in ("", "fresh"):
        head.append(Text(f"trust is {state.trust}: {state.trust_reason}", "yellow"))
    parts: list[Text | Table] = [*head, _models(list(rows(before, after, seconds)))]
    if state.fetching is not None:
        parts.append(_fetching(state.fetching))
    return Group(*parts)


def _models(found: list[Row]) -> Table:
    table = Table("model", "runs", "calls/s", "p50 ms", "p99 ms", "fallbacks", expand=True)
    for column in table.columns[1:5]:
        column.no_wrap = True
    for row in found:
        model = row.model
        updating = [] if model.state in ENDED else [f"updating: {model.state}"]
        runs = [model.variant, model.runtime.partition(";")[0]] if model.variant else ["nothing"]
        why = [f"{reason} {count}" for reason, count in sorted(row.fallbacks.items(), key=lambda item: -item[1])]
        if row.unanswered:
            why.append(f"unanswered {row.unanswered}")
        names = ("\n".join(lines) for lines in ([model.model, model.version], [*runs, *updating]))
        figures = (_figure(row.rate, 1), _figure(row.p50_ms, 2), _figure(row.p99_ms, 2))
        table.add_row(*(Text(cell) for cell in (*names, *figures, "\n".join(why))))
    if not found:
        table.add_row(Text("no model yet"))
    return table


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _fetching(fetching: Fetching) -> Table:
    table = Table.grid(padding=(0, 1))
    done, total = fetching.done_bytes, fetching.total_bytes
    left = "" if fetching.left_s is None else f", {fetching.left_s:.0f} s left"
    over = f" over {fetching.over}" if fetching.over else ""
    figures = f"{done / MIB:.1f} of {total / MIB:.1f} MiB, {fetching.rate / MIB:.2f} MiB/s by {fetching.road}{over}{left}"
    bar = ProgressBar(total=max(total, 1), completed=done, width=30)
    table.add_row(Text(f"fetching {fetching.sha256[:12]}"), bar, Text(figures))
    return table
