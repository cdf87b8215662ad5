"""Says what differs between two releases. Pure: two manifests in, a list of differences out; then a table or JSON of it.

Two makings of the same recipe differ in time and in what a clock measured and are the same by content all the same; so each
difference says whether it is one of content.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toprope_shared.manifest import Calibration, Fallback, Gate, Manifest, Preprocessing, Tokenizer, Variant
from toprope_shared.tensors import TensorSpec
from toprope_training import show

Value = str | int | float | bool | tuple[str, ...] | None

# So many names of a list stand in the table; all of them stand in the JSON.
MOST_NAMES = 6
DIGITS = 12
SPEED = "speed"


class Difference(msgspec.Struct, frozen=True):
    """One thing that is not the same in both releases.

    Attributes:
        part: of the release, e.g. `variants`.
        what: differs, e.g. `tflite-int8 bytes`.
        before: its value in the first release; None where that has none.
        after: its value in the second.
        note: what a reader wants to know of the two, e.g. `+3.1 %`.
        content: whether it says more than when, where and how fast the release was made.
    """

    part: str
    what: str
    before: Value
    after: Value
    note: str = ""
    content: bool = True


class Comparison(msgspec.Struct, frozen=True):
    """All that is to say of two releases.

    Attributes:
        same: whether they are the same release by content.
        identical: files that are the same to the last byte.
    """

    before: str
    after: str
    same: bool
    identical: tuple[str, ...]
    differences: tuple[Difference, ...]


def compare(before: Manifest, after: Manifest) -> Comparison:
    """Return what differs between two releases, in the order in which a report tells it."""
    found = (
        *_release(before, after),
        *_tensors("inputs", before.inputs, after.inputs),
        *_tensors("outputs", before.outputs, after.outputs),
        *_names("labels", "labels", before.labels, after.labels),
        *_variants(before.variants, after.variants),
        *_gates(before, after),
        *_preprocessing(before.preprocessing, after.preprocessing),
        *_fields("fallback", "", before.fallback, after.fallback, ("privacy", "deadline_ms")),
        *_mapping("fallback", "input ", _words(before.fallback), _words(after.fallback)),
        *_golden(before, after),
        *_provenance(before, after),
    )
    same = not any(difference.content for difference in found)
    return Comparison(_title(before), _title(after), same, _identical(before, after), found)


def encode(comparison: Comparison) -> str:
    """Return the comparison as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(comparison), indent=2).decode()


def table(comparison: Comparison) -> RenderableType:
    """Return sentences and a table about the comparison."""
    told = [Text(sentence) for sentence in sentences(comparison)]
    if not comparison.differences:
        return Group(*told)
    rows = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in ("part", "what", "before", "after", "change"):
        rows.add_column(name, overflow="fold")
    last = ""
    for difference in comparison.differences:
        values = (_word(difference.before), _word(difference.after), difference.note)
        part, last = "" if difference.part == last else difference.part, difference.part
        rows.add_row(part, Text(difference.what), *(Text(value) for value in values))
    return Group(*told, "", rows)


def sentences(comparison: Comparison) -> tuple[str, ...]:
    """Return what matters of the comparison in a sentence or two."""
    if comparison.same:
        measured = any(difference.part != "time" for difference in comparison.differences)
        but = "; only time, counter and what the clock measured differ" if measured else ""
        but = but or ("; only time and counter differ" if comparison.differences else "")
        first = f"Both are the same release by content{but}."
    else:
        count = sum(difference.content for difference in comparison.differences)
        things = "1 thing differs" if count == 1 else f"{count} things differ"
        first = f"{things} between {comparison.before} and {comparison.after}, besides time and speed."
    files = ", ".join(comparison.identical) or "none"
    return (first, f"Identical files: {files}.")


def _release(before: Manifest, after: Manifest) -> Iterator[Difference]:
    yield from _fields("release", "", before, after, ("model", "version", "description"))
    yield from _fields("release", "metric ", before.metric, after.metric, ("name", "higher_is_better"))
    yield from _change("time", "release counter", before.release_counter, after.release_counter, content=False)
    made = _moment(before.provenance.created), _moment(after.provenance.created)
    yield from _change("time", "made", *made, content=False)


def _tensors(part: str, before: Sequence[TensorSpec], after: Sequence[TensorSpec]) -> Iterator[Difference]:
    old, new = ({spec.name: _spec(spec) for spec in specs} for specs in (before, after))
    yield from _mapping(part, "", old, new)
    if old == new and list(old) != list(new):
        yield Difference(part, "order", tuple(old), tuple(new))


def _names(part: str, what: str, before: Sequence[str], after: Sequence[str]) -> Iterator[Difference]:
    """Tell names that came and went; the table counts them, the JSON has all."""
    old, new = set(before), set(after)
    if gone := tuple(name for name in before if name not in new):
        yield Difference(part, f"{what} removed", gone, None, f"{len(gone):,} removed")
    if come := tuple(name for name in after if name not in old):
        yield Difference(part, f"{what} added", None, come, f"{len(come):,} added")
    if old == new and tuple(before) != tuple(after):
        moved = sum(one != other for one, other in zip(before, after, strict=False))
        yield Difference(part, f"{what} order", None, None, f"{moved:,} stand elsewhere")


def _variants(before: Sequence[Variant], after: Sequence[Variant]) -> Iterator[Difference]:
    old, new = ({variant.name: variant for variant in variants} for variants in (before, after))
    for name, variant in old.items():
        if name not in new:
            yield Difference("variants", name, _brief(variant), None, "removed")
    for name, variant in new.items():
        if name not in old:
            yield Difference("variants", name, None, _brief(variant), "added")
    for name in old:
        if name in new:
            yield from _variant(old[name], new[name])
            yield from _calibration(name, old[name].calibration, new[name].calibration)


def _variant(before: Variant, after: Variant) -> Iterator[Difference]:
    name, part = f"{before.name} ", "variants"
    yield from _change(part, f"{name}digest", before.artifact.sha256, after.artifact.sha256)
    yield from _change(part, f"{name}bytes", before.artifact.length, after.artifact.length, percent)
    old, new = before.measured, after.measured
    if old is not None and new is not None:
        yield from _change(part, f"{name}metric", old.metric, new.metric, _shift)
        yield from _change(part, f"{name}parity", old.parity, new.parity, percent)
        yield from _change(part, f"{name}latency_us", old.latency_us, new.latency_us, percent, content=False)
        yield from _fields(part, name, old, new, ("slower_than_float",), content=False)
        yield from _change(part, f"{name}runtime", old.runtime, new.runtime)
    elif old is not new:
        yield Difference(part, f"{name}measured", old is not None, new is not None)
    yield from _fields(part, name, before, after, ("tolerance_ppm", "placement", "precision", "format", "reference"))
    yield from _fields(part, name, before.needs, after.needs, ("engines", "min_runtime", "opset", "ops", "stateful"))
    memory = (before.needs.memory_bytes, after.needs.memory_bytes)
    yield from _change(part, f"{name}memory_bytes", *memory, percent, content=False)


def _calibration(name: str, before: Calibration | None, after: Calibration | None) -> Iterator[Difference]:
    if before is None or after is None:
        if before is not after:
            old, new = (show.threshold(one) if one else None for one in (before, after))
            yield Difference("calibration", name, old, new, "removed" if after is None else "added")
        return
    yield from _fields("calibration", f"{name} ", before, after, Calibration.__struct_fields__)


def _gates(before: Manifest, after: Manifest) -> Iterator[Difference]:
    old, new = ({(gate.variant, gate.name): gate for gate in manifest.gates} for manifest in (before, after))
    # A variant that came or went takes its gates along; that it did is told once.
    alone = {variant.name for variant in before.variants} ^ {variant.name for variant in after.variants}
    for key in dict.fromkeys((*old, *new)):
        if key[0] in alone:
            continue
        one, other, what = old.get(key), new.get(key), f"{key[0]}: {key[1]}"
        if one is None or other is None:
            yield Difference("gates", what, _receipt(one), _receipt(other), "added" if one is None else "removed")
            continue
        measured = key[1] == SPEED
        yield from _change("gates", f"{what}, value", one.value, other.value, percent, content=not measured)
        yield from _change("gates", f"{what}, limit", one.limit, other.limit)
        yield from _change("gates", f"{what}, passed", one.passed, other.passed)


def _preprocessing(before: Sequence[Preprocessing], after: Sequence[Preprocessing]) -> Iterator[Difference]:
    old, new = ({one.input: one for one in found} for found in (before, after))
    for name in dict.fromkeys((*old, *new)):
        one, other = old.get(name), new.get(name)
        if one is None or other is None:
            texts = one.text if one else None, other.text if other else None
            yield Difference("preprocessing", name, *texts, "added" if one is None else "removed")
            continue
        yield from _change("preprocessing", f"{name} text", one.text, other.text)
        yield from _tokenizer(name, one.tokenizer, other.tokenizer)


def _tokenizer(name: str, before: Tokenizer | None, after: Tokenizer | None) -> Iterator[Difference]:
    part = "preprocessing"
    if before is None or after is None:
        if before is not after:
            old, new = (f"{len(one.vocabulary):,} tokens" if one else None for one in (before, after))
            yield Difference(part, f"{name} tokenizer", old, new, "removed" if after is None else "added")
        return
    yield from _change(part, f"{name} tokenizer length", before.length, after.length)
    yield from _names(part, f"{name} tokens", before.vocabulary, after.vocabulary)


def _golden(before: Manifest, after: Manifest) -> Iterator[Difference]:
    old, new = before.golden, after.golden
    yield from _change("golden", "digest", old.artifact.sha256, new.artifact.sha256)
    yield from _fields("golden", "", old, new, ("rows", "stacked"))


def _provenance(before: Manifest, after: Manifest) -> Iterator[Difference]:
    part, old, new = "provenance", before.provenance, after.provenance
    yield from _change(part, "recipe", old.recipe, new.recipe)
    yield from _mapping(part, "parameter ", old.parameters, new.parameters)
    yield from _fields(part, "", old, new, ("seed", "data_sha256", "weights_sha256", "source_revision"))
    yield from _mapping(part, "package ", old.packages, new.packages)


def _change(
    part: str,
    what: str,
    before: Value,
    after: Value,
    note: Callable[[float, float], str] | None = None,
    *,
    content: bool = True,
) -> Iterator[Difference]:
    if before == after:
        return
    told = ""
    if note is not None and isinstance(before, int | float) and isinstance(after, int | float):
        told = note(before, after)
    yield Difference(part, what, before, after, told, content)


def _fields(
    part: str, prefix: str, before: object, after: object, names: Iterable[str], *, content: bool = True
) -> Iterator[Difference]:
    for name in names:
        yield from _change(part, prefix + name, getattr(before, name), getattr(after, name), content=content)


def _mapping(part: str, prefix: str, before: Mapping[str, Value], after: Mapping[str, Value]) -> Iterator[Difference]:
    for name in dict.fromkeys((*before, *after)):
        note = "added" if name not in before else "removed" if name not in after else ""
        if note or before[name] != after[name]:
            yield Difference(part, prefix + name, before.get(name), after.get(name), note)


def _words(fallback: Fallback) -> dict[str, Value]:
    return {
        word.input: ", ".join(
            [
                str(word.privacy),
                *([f"fill {word.fill!r}"] if word.fill is not None else []),
                *([f"made by {word.made_by}"] if word.made_by else []),
            ]
        )
        for word in fallback.inputs
    }


def percent(before: float, after: float) -> str:
    """Return a change relative to where it began; nothing can be said of a change from zero."""
    if not before or not math.isfinite(after - before):
        return ""
    return f"{100 * (after - before) / abs(before):+.1f} %"


def _shift(before: float, after: float) -> str:
    return f"{after - before:+.4f}"


def _identical(before: Manifest, after: Manifest) -> tuple[str, ...]:
    new = {variant.name: variant.artifact.sha256 for variant in after.variants}
    found = [variant.filename for variant in before.variants if new.get(variant.name) == variant.artifact.sha256]
    if before.golden.artifact.sha256 == after.golden.artifact.sha256:
        found.append("golden.npz")
    return tuple(found)


def _title(manifest: Manifest) -> str:
    return f"{manifest.model} {manifest.version} (release counter {manifest.release_counter})"


def _spec(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape)}"


def _brief(variant: Variant) -> str:
    return f"{variant.artifact.length:,} bytes, {variant.placement}"


def _receipt(gate: Gate | None) -> str | None:
    if gate is None:
        return None
    return f"{'passed' if gate.passed else 'FAILED'}: {show.number(gate.value)} of {show.number(gate.limit)}"


def _moment(created: int) -> str:
    return datetime.fromtimestamp(created, UTC).isoformat(sep=" ")


def _word(value: Value) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple):
        more = f", … {len(value) - MOST_NAMES:,} more" if len(value) > MOST_NAMES else ""
        return ", ".join(value[:MOST_NAMES]) + more
    return f"{value[:DIGITS]}…" if len(value) in {40, 64} and " " not in value else value
