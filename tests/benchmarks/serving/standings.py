"""Turns what was found into rows, ratios within a round and goals. Pure: no process, no clock."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from tests.benchmarks.results import Goal, Table
from tests.benchmarks.serving import models
from tests.benchmarks.serving.ours import NAME
from tests.benchmarks.serving.rounds import CONNECTIONS, Found, Sample
from tests.benchmarks.serving.wire import Form

HELLO, BARE = "hello", "bare"
LADDER = tuple(sorted(CONNECTIONS))
MOST, LEAST = max(CONNECTIONS), min(CONNECTIONS)
JSON, BINARY = "JSON", "bytes"
SECTIONS = (
    (models.SMALL, JSON),
    (models.SMALL, BINARY),
    (models.HEAVY, JSON),
    (models.CONV, JSON),
    (models.IMAGE, BINARY),
    (models.IMAGE, JSON),
)
COLUMNS = (
    "model, tensors as",
    "server",
    *(f"req/s at {n}" for n in LADDER),
    *(f"of ours at {n}" for n in LADDER),
    *(f"p50 µs at {n}" for n in (LEAST, MOST)),
    *(f"p99 µs at {n}" for n in (LEAST, MOST)),
    f"CPU µs at {MOST}",
    "cold start s",
    "RSS MiB",
    "PSS MiB",
    "processes",
)
# How many times the peer's requests a second ours are to be, on the small model in JSON with the most connections.
TIMES = {"triton": 4, "mlserver": 20, "kserve": 20, "litserve": 40, "torchserve": 40, "bentoml": 40, "ray": 40}
BINARY_TIMES, P50_SHARE, BATCHED_TIMES = 1.5, 0.75, 12

Key = tuple[str, str, Form, int]


class Standings:
    """Medians and ratios of what was found.

    Args:
        found: samples of some rounds.
        titles: of the servers by name.
    """

    def __init__(self, found: Found, titles: Mapping[str, str]) -> None:
        self._found = found
        self._titles = titles
        self._by: dict[Key, dict[int, Sample]] = {}
        for one in found.samples:
            self._by.setdefault((one.server, one.model, one.form, one.connections), {})[one.round] = one

    def forms(self, server: str, model: str, tensors: str) -> list[Form]:
        """Return the forms that a server was measured in."""
        binary = tensors == BINARY
        return list(dict.fromkeys(f for s, m, f, _ in self._by if (s, m) == (server, model) and f.binary == binary))

    def rates(self, server: str, model: str, form: Form, connections: int) -> dict[int, float]:
        """Return the good answers a second by round."""
        return {number: one.loaded.rate for number, one in self._by.get((server, model, form, connections), {}).items()}

    def best(self, server: str, model: str, tensors: str, connections: int) -> dict[int, float]:
        """Return the same in the server's best form."""
        forms = [self.rates(server, model, form, connections) for form in self.forms(server, model, tensors)]
        return max(forms, key=lambda rates: statistics.median(rates.values()) if rates else 0.0, default={})

    def latency(self, server: str, model: str, form: Form, connections: int, name: str) -> dict[int, float]:
        """Return `p50` or `p99` by round, µs."""
        found = self._by.get((server, model, form, connections), {})
        return {number: float(getattr(one.loaded, name)) for number, one in found.items()}

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """Return the table's rows: ours first, then from the fastest to the slowest; the missing ones with the reason."""
        rows: list[tuple[str, ...]] = []
        for model, tensors in SECTIONS:
            title = f"{models.TITLES[model]}, {tensors}"
            named = [
                (server, form)
                for server in self._titles
                if server not in (NAME, BARE)
                for form in self.forms(server, model, tensors)
            ]
            named.sort(key=lambda one: -_median(self.rates(*_at(one, model), MOST)))
            own = [(NAME, form) for form in self.forms(NAME, model, tensors)]
            rows += [self._row(title, server, model, form, tensors) for server, form in own + named]
            if (model, tensors) != (models.IMAGE, JSON) and (model, tensors) != (models.SMALL, BINARY):
                rows += self._bare(title, model)
        return tuple(rows) + self._missing()

    def _row(self, title: str, server: str, model: str, form: Form, tensors: str) -> tuple[str, ...]:
        name = self._titles[server]
        if len(self.forms(server, model, tensors)) > 1:
            name = f"{name}, {form}"
        base = Form.OPEN_BINARY if form.binary else Form.OPEN
        cells = [title, name]
        rates = [self.rates(server, model, form, n) for n in LADDER]
        cells += [_cell(rate) for rate in rates]
        cells += [_cell(ratios(rate, self.rates(NAME, model, base, n)), 3) for n, rate in zip(LADDER, rates, strict=True)]
        cells += [_cell(self.latency(server, model, form, n, name)) for name in ("p50", "p99") for n in (LEAST, MOST)]
        cells.append(_cell({i: one.cpu_us for i, one in self._by.get((server, model, form, MOST), {}).items()}))
        return (*cells, *self._starts(server, (model, tensors) == SECTIONS[0]))

    def _starts(self, server: str, wanted: bool) -> tuple[str, ...]:
        found = [one for one in self._found.starts if one.server == server] if wanted else []
        if not found:
            return ("",) * 4
        columns = zip(*((one.cold_s, one.rss_mib, one.pss_mib, one.processes) for one in found), strict=True)
        cold, rss, pss, processes = (statistics.median(column) for column in columns)
        return f"{cold:.1f}", f"{rss:.0f}", f"{pss:.0f}", f"{processes:.0f}"

    def _bare(self, title: str, model: str) -> list[tuple[str, ...]]:
        found = [one for one in self._found.bare if one.model == model]
        if not found:
            return []
        rate, p50, p99, cpu = (
            f"{statistics.median(column):.0f}"
            for column in zip(*((one.rate, one.p50, one.p99, one.cpu_us) for one in found), strict=True)
        )
        of_ours = _cell(ratios(self.alone(model), self.rates(NAME, model, Form.OPEN, LEAST)), 3)
        return [(title, self._titles[BARE], rate, "", "", of_ours, "", "", p50, "", p99, "", cpu, "", "", "", "")]

    def alone(self, model: str) -> dict[int, float]:
        """Return onnxruntime's calls a second in a loop by round."""
        return {one.round: one.rate for one in self._found.bare if one.model == model}

    def _missing(self) -> tuple[tuple[str, ...], ...]:
        seen = {one.server for one in self._found.samples}
        blank = ("",) * (len(COLUMNS) - 3)
        return tuple(
            ("not measured", self._titles[name], why.replace("|", "/"), *blank)
            for name, why in self._found.troubles.items()
            if name not in seen
        )

    def goals(self) -> tuple[Goal, ...]:
        """Return every goal that one contest can tell of."""
        return (*self._times(), *self._against_triton(), *self._weight_bound())

    def _times(self) -> Iterable[Goal]:
        ours = self.rates(NAME, models.SMALL, Form.OPEN, MOST)
        for name, times in TIMES.items():
            found = ratios(ours, self.best(name, models.SMALL, JSON, MOST))
            text = f"small, JSON, {MOST} connections: at least {times} times the req/s of {self._titles[name]}"
            yield _goal(text, found, least=times)

    def _against_triton(self) -> Iterable[Goal]:
        ours = self.latency(NAME, models.SMALL, Form.OPEN, LEAST, "p50")
        found = ratios(ours, self.latency("triton", models.SMALL, Form.OPEN, LEAST, "p50"))
        text = f"small, JSON, one connection: p50 at most {P50_SHARE:g} times Triton's"
        yield _goal(text, found, most=P50_SHARE)
        found = ratios(
            self.rates(NAME, models.SMALL, Form.OPEN_BINARY, MOST),
            self.rates("triton", models.SMALL, Form.OPEN_BINARY, MOST),
        )
        text = f"small, binary, {MOST} connections: at least {BINARY_TIMES:g} times Triton's requests a second"
        yield _goal(text, found, least=BINARY_TIMES)

    def _weight_bound(self) -> Iterable[Goal]:
        ours = self.rates(NAME, models.HEAVY, Form.OPEN, MOST)
        text = f"weight-bound, {MOST} connections: at least {BATCHED_TIMES} times onnxruntime called row by row"
        yield _goal(text, ratios(ours, self.alone(models.HEAVY)), least=BATCHED_TIMES)
        late = self.latency(NAME, models.HEAVY, Form.OPEN, MOST, "p99")
        for what, mine, share in (("requests a second", ours, False), ("p99", late, True)):
            worst = [
                (_median(found), self._titles[server])
                for server in TIMES
                for form in self.forms(server, models.HEAVY, JSON)
                if (found := self._against(mine, server, form, share=share))
            ]
            text = f"weight-bound, {MOST} connections: behind no peer in {what}"
            if not worst:
                yield Goal(text, None)
                continue
            ratio, who = (max if share else min)(worst)
            yield Goal(f"{text} ({who}: {ratio:.2f} times)", ratio <= 1 if share else ratio >= 1)

    def _against(self, mine: dict[int, float], server: str, form: Form, *, share: bool) -> dict[int, float]:
        if share:
            return ratios(mine, self.latency(server, models.HEAVY, form, MOST, "p99"))
        return ratios(mine, self.rates(server, models.HEAVY, form, MOST))

    def refusals(self) -> list[str]:
        """Return a sentence for each run with requests that were not answered well."""
        found = []
        for one in self._found.samples:
            bad = one.loaded.refused + one.loaded.broken
            if bad:
                where = f"{models.TITLES[one.model]}, {one.form}, {one.connections} connections, round {one.round + 1}"
                found.append(
                    f"- {self._titles[one.server]} ({where}): {one.loaded.refused} of {one.loaded.requests} answers "
                    f"were errors, {one.loaded.broken} connections broke or waited too long."
                )
        for name, why in self._found.troubles.items():
            found.append(f"- {self._titles[name]} was given up: {why}")
        return found


def table(found: Found, titles: Mapping[str, str], settings: Sequence[str]) -> Table:
    """Return the whole table; `settings` are sentences on how each server was run."""
    standings = Standings(found, titles)
    rounds = f"{found.rounds} rounds in turns" if found.rounds != 1 else "one round"
    how = (
        "Figures are medians over the rounds; *of ours* is the median of the ratios within a round, to ours in Open Inference, "
        "JSON or binary. A cold start ends when every model has been answered rightly; memory is read then, *PSS* counts pages "
        "that processes share once. CPU is user and system time of all of a server's processes. wrk runs on the same cores."
    )
    return Table(
        name="serving/peers",
        title=f"Servers over the same models with the same onnxruntime, at {_listed(LADDER)} connections, {rounds}",
        columns=COLUMNS,
        rows=standings.rows(),
        goals=standings.goals(),
        notes=(how, "", *settings, *standings.refusals()),
    )


def ratios(above: Mapping[int, float], below: Mapping[int, float]) -> dict[int, float]:
    """Return the ratio of each round that both have."""
    return {number: above[number] / below[number] for number in above if below.get(number)}


def _at(one: tuple[str, Form], model: str) -> tuple[str, str, Form]:
    return one[0], model, one[1]


def _median(found: Mapping[int, float]) -> float:
    return statistics.median(found.values()) if found else 0.0


def _cell(found: Mapping[int, float], digits: int = 0) -> str:
    return f"{_median(found):.{digits}f}" if found else ""


def _goal(text: str, found: Mapping[int, float], *, least: float = 0.0, most: float = math.inf) -> Goal:
    if not found:
        return Goal(text, None)
    ratio = _median(found)
    return Goal(f"{text}: {ratio:.2f}", least <= ratio <= most)


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
