"""Whatever bytes come: they are read, or refused with an error that the parser names, and cost memory in proportion.

The examples are the same in every run; `make fuzz` looks for new ones with atheris, for as long as it is given.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import logging
import pkgutil
import re
import tracemalloc
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz.table import ANYWHERE, Target, targets

import toprope_shared
from toprope_shared import messages

QUICK, SLOW = 15, 3
# A public function of this name that takes bytes or a file parses something.
PARSER = re.compile(r"(decode|parse|read|load|loads|unpack|uncompress|from)(_.*)?")
TAKES = re.compile(r"\b(bytes|memoryview|BinaryIO|Path)\b")
VALUES: list[Any] = [None, True, -1, 0, 2**63, 10**30, 0.5, "", "\ud800", "\0", "x" * 300, [], [[]], {}, {"a": 1}]


def names() -> list[str]:
    """Return the names of all targets."""
    return list(targets())


@st.composite
def damaged(draw: st.DrawFn, target: Target) -> bytes:
    """Draw one of a target's seeds with bytes changed, dropped, doubled or put in, or with another JSON value somewhere."""
    data = bytearray(draw(st.sampled_from(target.seeds)))
    start = data.find(b"{")
    if start >= 0 and draw(st.booleans()):
        found = _other_value(draw, bytes(data[start:]))
        if found is not None:
            return bytes(data[:start]) + found
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 9))
        put = draw(
            st.binary(max_size=9) | st.sampled_from([b"[" * 99, b"\xff" * 8, b"\0" * 8, b"9" * 40, bytes(data[:99])])
        )
        data[at : at + size] = put
    return bytes(data)


def _other_value(draw: st.DrawFn, text: bytes) -> bytes | None:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    where, key = draw(st.sampled_from(list(_places(document))))
    where[key] = draw(st.sampled_from(VALUES))
    return json.dumps(document).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a JSON value with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []:
        yield value, key
        yield from _places(value[key])


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1)


@pytest.mark.parametrize("name", names())
def test_hostile_bytes_are_read_or_refused_and_cost_memory_in_proportion(name: str) -> None:
    target = targets()[name]
    # What is made once is made here, before anything is measured.
    assert any([target.run(seed) for seed in target.seeds]), "no seed gets through, so the rest proves little"  # noqa: C419
    tracemalloc.start()
    try:
        for data in (*target.seeds, *target.hostile, *ANYWHERE):
            tracemalloc.clear_traces()
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            target.run(data)
            grown = tracemalloc.get_traced_memory()[1] - before
            limit = target.fixed + target.factor * len(data)
            assert grown <= limit, f"{grown} bytes for {len(data)} that begin with {data[:60]!r}; at most {limit}"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", names())
def test_damaged_bytes_are_read_or_refused(name: str) -> None:
    target = targets()[name]
    examples = QUICK if target.quick else SLOW

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(damaged(target))
    def hold(data: bytes) -> None:
        target.run(data)

    hold()


def test_every_public_parser_of_the_foundation_is_in_the_table() -> None:
    covered = {name for target in targets().values() for name in target.covers}
    found = set(_parsers())
    assert {"chunks.Data.parse", "messages.decode", "golden.GoldenSet.read", "drafts.Draft.read"} <= found
    assert sorted(found - covered) == [], "add a Target for it in tests/fuzz"
    assert sorted(covered - found) == [], "the table names what is no public parser"


def test_every_message_is_in_the_table() -> None:
    kinds = [
        kind
        for kind in vars(messages).values()
        if inspect.isclass(kind) and issubclass(kind, msgspec.Struct) and kind.__module__ == messages.__name__
    ]
    inner = {
        part.__name__
        for kind in kinds
        for field in msgspec.structs.fields(kind)
        for part in kinds
        if part.__name__ in str(field.type)
    }
    assert sorted({f"messages.{kind.__name__}" for kind in kinds if kind.__name__ not in inner} - set(names())) == []


def _parsers() -> Iterator[str]:
    for module in pkgutil.walk_packages(toprope_shared.__path__, "toprope_shared."):
        if module.name.endswith(("__main__", "_child")):
            continue
        source = inspect.getsource(importlib.import_module(module.name))
        for name, function in _functions(ast.parse(source), ""):
            kinds = [ast.unparse(one.annotation) for one in _arguments(function) if one.annotation]
            if PARSER.fullmatch(name.rpartition(".")[2]) and any(map(TAKES.search, kinds)):
                yield f"{module.name.removeprefix('toprope_shared.')}.{name}"


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
            yield prefix + child.name, child


def _arguments(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
