"""Reads out of the source, without importing it, what the references must name: metrics, errors' codes, exit codes.

Recipes import TensorFlow, so importing every module would take a minute; a syntax tree takes a second.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("shared", "edge", "cloud", "training")
ROOT_ERROR = "TopropeError"
KINDS = {"Counter": "counter", "Gauge": "gauge", "Histogram": "histogram", "Summary": "summary"}
# What a collector of its own yields.
FAMILIES = {f"{kind}MetricFamily": text for kind, text in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as it is exposed: a counter's name ends in `_total`."""

    name: str
    kind: str
    labels: tuple[str, ...]
    room: str


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """A class below `TopropeError`, with the code that it has or inherits."""

    name: str
    code: str
    stems: tuple[str, ...]


@cache
def trees() -> tuple[tuple[str, ast.Module], ...]:
    """Return each room's name with the syntax tree of each of its modules."""
    return tuple(
        (room, ast.parse(file.read_text()))
        for room in ROOMS
        for file in sorted((ROOT / room / f"toprope_{room}").rglob("*.py"))
    )


@cache
def metrics() -> list[Metric]:
    """Return every metric that a room declares on a registry; its name is literal, its labels are or have a literal's name."""
    found = [
        Metric(_exposed(node), {**KINDS, **FAMILIES}[_called(node)], _labels(node, tree), room)
        for room, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            _called(node) in FAMILIES or (_called(node) in KINDS and any(word.arg == "registry" for word in node.keywords))
        )
    ]
    return sorted(found, key=lambda metric: metric.name)


@cache
def errors() -> list[ErrorClass]:
    """Return every class below `TopropeError`, itself included, the stems before the branches."""
    classes = {
        node.name: node for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.bases
    }
    found: dict[str, ErrorClass] = {}

    def take(name: str) -> ErrorClass | None:
        if name not in found and (node := classes.get(name)):
            stems = [base.id for base in node.bases if isinstance(base, ast.Name)]
            above = next(filter(None, map(take, stems)), None)
            if above or name == ROOT_ERROR:
                inherited = (above.name, *above.stems) if above else ()
                found[name] = ErrorClass(name, _code(node) or (above.code if above else ""), inherited)
        return found.get(name)

    for name in classes:
        take(name)
    return sorted(found.values(), key=lambda one: (len(one.stems), one.name))


def exits() -> dict[str, set[int]]:
    """Return by a function's name the numbers that it hands to `typer.Exit`."""
    return {
        function.name: numbers
        for _, tree in trees()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and (numbers := set(_exit_codes(function)))
    }


def _exit_codes(function: ast.FunctionDef) -> Iterator[int]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and _called(node) == "Exit" and node.args and isinstance(node.args[0], ast.Constant):
            yield int(str(node.args[0].value))


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _exposed(node: ast.Call) -> str:
    return str(ast.literal_eval(node.args[0])) + ("_total" if _called(node) in ("Counter", "CounterMetricFamily") else "")


def _labels(node: ast.Call, tree: ast.Module) -> tuple[str, ...]:
    given = [*node.args[2:3], *(word.value for word in node.keywords if word.arg in ("labelnames", "labels"))]
    if given and isinstance(given[0], ast.Name):
        meant = given[0].id
        given = [
            one.value
            for one in ast.walk(tree)
            if isinstance(one, ast.Assign) and meant in [getattr(target, "id", "") for target in one.targets]
        ]
    return tuple(ast.literal_eval(given[0])) if given else ()


def _code(node: ast.ClassDef) -> str:
    for line in node.body:
        if isinstance(line, ast.Assign) and [getattr(target, "id", "") for target in line.targets] == ["code"]:
            return str(ast.literal_eval(line.value))
    return ""
