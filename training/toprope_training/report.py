"""Writes a release's report: one HTML file that needs nothing else, from the manifest and what was measured beside it.

The page asks no network and runs no script; every text in it is escaped, because labels and names are other people's. The
same release gives the same bytes. What the page says is said here; how it looks, in `report.html.j2`.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from toprope_shared.blobs import replace_file
from toprope_shared.errors import InputError
from toprope_shared.manifest import PPM, Gate, Manifest, Preprocessing, Variant
from toprope_shared.tensors import TensorSpec
from toprope_training import layout, measurements, pictures, show
from toprope_training.measurements import Confusion, Measurements
from toprope_training.pictures import MOST_CLASSES, Pictures
from toprope_training.svg import Picture

TEMPLATE = "report.html.j2"
MOST_PAIRS = 20
FIRST_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading; numbers stand at its right."""

    name: str
    number: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; `mark` is its CSS class."""

    cells: tuple[str, ...]
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of a row is its heading."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One number that is told in large letters."""

    name: str
    value: str
    of: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the page shows, in words; see the functions that make each part."""

    title: str
    summary: str
    description: str
    failed: int
    facts: tuple[Fact, ...]
    variants: Table
    left_out: tuple[str, ...]
    calibration: Table
    confused: tuple[Table, ...]
    gates: Table
    tensors: Table
    preprocessing: Table
    fallback: str
    provenance: Table
    packages: Table
    labels: tuple[str, ...]
    pictures: Pictures
    measured: bool
    holdout_rows: int


def read(folder: Path, manifest: Manifest) -> Report:
    """Return the report of a bundle's manifest and of the measurements beside it, if there are any.

    Raises:
        InputError: `measurements.json` is damaged.
    """
    path = folder / layout.MEASUREMENTS
    return build(manifest, measurements.read(path) if path.exists() else None)


def build(manifest: Manifest, measured: Measurements | None) -> Report:
    """Return what the page shows."""
    seen = measured or Measurements(0)
    return Report(
        title=f"{manifest.model} {manifest.version}",
        summary=show.header(manifest),
        description=manifest.description,
        failed=sum(not gate.passed for gate in manifest.gates),
        facts=facts(manifest),
        variants=variants(manifest),
        left_out=seen.left_out,
        calibration=calibration(manifest.variants),
        confused=tuple(confused(one, manifest.labels) for one in seen.confusion if len(one.counts) > MOST_CLASSES),
        gates=gates(manifest.gates),
        tensors=tensors(manifest.inputs, manifest.outputs),
        preprocessing=preprocessing(manifest.preprocessing),
        fallback=fallback(manifest),
        provenance=provenance(manifest),
        packages=packages(manifest.provenance.packages),
        labels=manifest.labels,
        pictures=pictures.draw(manifest, measured),
        measured=measured is not None,
        holdout_rows=seen.holdout_rows,
    )


def render(report: Report) -> str:
    """Return the page."""
    source = importlib.resources.files("toprope_training").joinpath(TEMPLATE).read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["inline"] = _inline
    return environment.from_string(source).render(report=report)


def write(folder: Path, report: Report) -> str:
    """Write the page into a bundle and say where it stands, or why it could not be written."""
    path = folder / layout.REPORT
    try:
        replace_file(path, render(report).encode())
    except OSError as error:
        return (
            f"The report could not be written to {path}: {error.strerror or error}; "
            "copy the bundle to a folder that you may write to, or use --no-report."
        )
    return f"The report is in {path}."


def write_pictures(folder: Path, report: Report) -> str:
    """Write each picture as a file of its own and say how many there are.

    Raises:
        InputError: they can't be written there.
    """
    drawn = report.pictures.all()
    try:
        for one in drawn:
            replace_file(folder / f"{one.name}.svg", one.alone.encode())
    except OSError as error:
        raise InputError(f"can't write pictures to {folder}: {error.strerror or error}; name another folder") from error
    return f"{len(drawn)} pictures are in {folder}."


def facts(manifest: Manifest) -> tuple[Fact, ...]:
    """Return the few numbers that a reader looks for first."""
    small = min(manifest.variants, key=lambda variant: variant.artifact.length)
    found = [Fact("smallest", _size(small.artifact.length), small.name)]
    pairs = [(variant, variant.measured) for variant in manifest.variants if variant.measured]
    if pairs:
        sign = -1 if manifest.metric.higher_is_better else 1
        best, score = min(pairs, key=lambda pair: sign * pair[1].metric)
        quick, speed = min(pairs, key=lambda pair: pair[1].latency_us)
        found.insert(0, Fact(f"best {manifest.metric.name}", f"{score.metric:.4f}", best.name))
        found.append(Fact("fastest row", show.latency(speed.latency_us), quick.name))
    passed = sum(gate.passed for gate in manifest.gates)
    return (*found, Fact("gates passed", f"{passed} of {len(manifest.gates)}"))


def variants(manifest: Manifest) -> Table:
    """Return the table of variants."""
    better = "higher" if manifest.metric.higher_is_better else "lower"
    caption = f"Measured on the machine that made them; {better} {manifest.metric.name} is better."
    names = ("bytes", manifest.metric.name, "one row", "parity", "tolerance")
    columns = (Column("variant"), *(Column(name, number=True) for name in names))
    more = (Column("place"), Column("engines"), Column("notes"))
    return Table(caption, (*columns, *more), tuple(_variant(variant) for variant in manifest.variants))


def calibration(found: Sequence[Variant]) -> Table:
    """Return the table of calibrations."""
    names = ("temperature", "tau", "margin", "alpha", "confidence", "rows", "kept")
    columns = (Column("variant"), Column("tau is"), *(Column(name, number=True) for name in names))
    rows = []
    for variant in found:
        if (one := variant.calibration) is None:
            continue
        values = one.temperature, one.tau, one.margin, one.alpha, one.confidence
        numbers = (*(f"{value:.4g}" for value in values), f"{one.rows:,}")
        came = "certified" if one.certified else "heuristic"
        rows.append(Row((variant.name, came, *numbers, pictures.percent(one.kept))))
    caption = (
        "At a confidence of tau and above the edge's answer stands. Certified: with the stated confidence at most a share "
        "alpha of the kept answers differs from the cloud's; heuristic: there were too few rows to prove that."
    )
    return Table(caption, columns, tuple(rows))


def confused(measured: Confusion, labels: Sequence[str]) -> Table:
    """Return the pairs of classes that are confused most, for what has too many classes for a matrix."""
    names = labels if len(labels) == len(measured.counts) else [str(number) for number in range(len(measured.counts))]
    found = [
        (rows, sum(row), names[true], names[called])
        for true, row in enumerate(measured.counts)
        for called, rows in enumerate(row)
        if rows and true != called
    ]
    found.sort(key=lambda pair: (-pair[0], -pair[0] / pair[1], pair[2], pair[3]))
    shown = tuple(
        Row((true, called, f"{rows:,}", pictures.percent(rows / of))) for rows, of, true, called in found[:MOST_PAIRS]
    )
    columns = (Column("true class"), Column("called"), Column("rows", number=True), Column("of the class", number=True))
    wrong = sum(rows for rows, *_ in found)
    total = sum(map(sum, measured.counts))
    caption = f"{measured.variant}: {wrong:,} of {total:,} rows were called another of {len(names)} classes; the commonest."
    return Table(caption, columns, shown)


def gates(found: Sequence[Gate]) -> Table:
    """Return the table of gates, the failed first."""
    columns = (Column("gate"), Column("variant"), Column("measured", number=True), Column("limit", number=True))
    ordered = sorted(found, key=lambda gate: gate.passed)
    rows = tuple(
        Row(
            (gate.name, gate.variant, show.number(gate.value), show.number(gate.limit), show.verdict(gate)),
            "" if gate.passed else "failed",
        )
        for gate in ordered
    )
    return Table("What was held against what before the release was signed.", (*columns, Column("verdict")), rows)


def tensors(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Table:
    """Return the table of tensor specs."""
    rows = [
        Row((spec.name, way, spec.datatype, " × ".join("any" if size == -1 else str(size) for size in spec.shape)))
        for way, specs in (("input", inputs), ("output", outputs))
        for spec in specs
    ]
    return Table("", (Column("tensor"), Column("way"), Column("datatype"), Column("shape")), tuple(rows))


def preprocessing(found: Sequence[Preprocessing]) -> Table:
    """Return the table of what must be done to make the inputs."""
    rows = []
    for one in found:
        cut = ""
        if one.tokenizer is not None:
            words = one.tokenizer.vocabulary
            first = " ".join(words[:FIRST_TOKENS])
            cut = f"{one.tokenizer.length} ids of {len(words):,} tokens, from 2 on: {first}"
            cut += " …" if len(words) > FIRST_TOKENS else ""
        rows.append(Row((one.input, one.text, cut)))
    return Table("", (Column("input"), Column("what to do"), Column("tokenizer")), tuple(rows))


def fallback(manifest: Manifest) -> str:
    """Return the release's word on the fallback."""
    return (
        f"Of a request, {manifest.fallback.privacy} may leave the device; a caller waits "
        f"{manifest.fallback.deadline_ms:,} ms unless it says otherwise."
    )


def provenance(manifest: Manifest) -> Table:
    """Return the table of where the release came from."""
    found, golden = manifest.provenance, manifest.golden
    made = datetime.fromtimestamp(found.created, UTC).isoformat(sep=" ")
    pairs = [("recipe", found.recipe), ("seed", str(found.seed)), ("made", made)]
    pairs += [(f"parameter {name}", str(value)) for name, value in sorted(found.parameters.items())]
    pairs += [("source revision", found.source_revision), ("data", found.data_sha256), ("weights", found.weights_sha256)]
    pairs.append((f"golden set, {golden.rows} rows", golden.artifact.sha256))
    pairs += [(variant.filename, variant.artifact.sha256) for variant in manifest.variants]
    rows = tuple(Row(pair) for pair in pairs)
    return Table("Digests are SHA-256.", (Column("what"), Column("value")), rows)


def packages(found: dict[str, str]) -> Table:
    """Return the table of package versions."""
    rows = tuple(Row(pair) for pair in sorted(found.items()))
    return Table("What took part.", (Column("package"), Column("version")), rows)


def _variant(variant: Variant) -> Row:
    measured = variant.measured
    values = ("–", "–", "–")
    if measured is not None:
        values = (f"{measured.metric:.4f}", show.latency(measured.latency_us), f"{measured.parity:.2g}")
    engines = ", ".join(variant.needs.engines) or (measured.runtime if measured else "")
    words = (variant.placement, engines, "; ".join(show.notes(variant)))
    allowed = f"{variant.tolerance_ppm / PPM:.4g}"
    return Row((variant.name, f"{variant.artifact.length:,}", *values, allowed, *words))


def _size(length: int) -> str:
    for limit, unit in ((1_000_000, "MB"), (1_000, "kB")):
        if length >= limit:
            return f"{length / limit:.3g} {unit}"
    return f"{length} bytes"


def _inline(one: Picture) -> Markup:
    # An SVG element that matplotlib drew and ElementTree wrote: its texts are escaped already.
    return Markup(one.inline)  # noqa: S704
