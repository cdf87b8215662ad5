"""The gates that a release passes before it may be signed, each with its receipt. Pure: measurements in, verdicts out.

A gate that fails stops the release with a table that says what, by how much, and what to change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from toprope_shared.errors import GateError
from toprope_shared.manifest import Gate, Metric
from toprope_training.recipe import Recipe
from toprope_training.steps import Converted, Evaluated

# The oldest runtime that releases are made for, as major + minor / 100: tflite-runtime's last version.
TARGET_RUNTIME = "2.14.0"
# Above this ratio to the float variant's latency a quantized variant is marked slower; below it is noise.
SLOWER_RATIO = 1.05
# Tolerance of the golden outputs: three times what was measured here, and at least what other processors round differently.
HEADROOM = 3
FLOORS_PPM: Mapping[str, int] = {"float32": 100, "float16": 2_000, "int8": 20_000}

_FLEX = "Flex"


def precision_of(variant: str) -> str:
    """Return the precision in a variant's name, e.g. int8 of tflite-int8."""
    return variant.partition("-")[2]


def format_of(variant: str) -> str:
    """Return the format in a variant's name, e.g. tflite of tflite-int8."""
    return variant.partition("-")[0]


def learned(recipe: Recipe, metric: float) -> list[Gate]:
    """Hold the reference's own metric against the worst that the recipe takes."""
    if recipe.required is None:
        return []
    good = metric >= recipe.required if recipe.metric.higher_is_better else metric <= recipe.required
    advice = "" if good else "the training itself fell short: train longer, mend the data, or change `required`"
    return [Gate(recipe.metric.name, "reference", metric, recipe.required, good, advice)]


def conversion(converted: Converted) -> list[Gate]:
    """Hold a converted file against what the target runtimes run."""
    if format_of(converted.name) == "onnx":
        return [
            Gate(
                "onnx checker",
                converted.name,
                float(bool(converted.problem)),
                0.0,
                not converted.problem,
                converted.problem,
            )
        ]
    needs, limit = runtime_number(converted.needs.min_runtime), runtime_number(TARGET_RUNTIME)
    flex = [name for name in converted.needs.ops if name.startswith(_FLEX)]
    old = needs <= limit
    return [
        Gate(
            "runtime",
            converted.name,
            needs,
            limit,
            old,
            ""
            if old
            else f"an operator needs runtime {converted.needs.min_runtime}; use a simpler layer or leave the variant out",
        ),
        Gate(
            "flex",
            converted.name,
            float(len(flex)),
            0.0,
            not flex,
            f"no edge runtime has {', '.join(flex)}; replace the layer" if flex else "",
        ),
    ]


def quality(recipe: Recipe, reference: float, variant: str, measured: Sequence[Evaluated]) -> list[Gate]:
    """Hold a variant's outputs and metric, on every engine that ran it, against the reference's."""
    limit = recipe.parity_limits_ppm[precision_of(variant)]
    gates: list[Gate] = []
    for one in measured:
        near = one.parity_ppm <= limit
        advice = (
            ""
            if near
            else f"raise parity_limits_ppm[{precision_of(variant)!r}] if the metric holds, or leave the variant out"
        )
        gates.append(Gate(f"parity on {one.engine}", variant, one.parity_ppm, limit, near, advice))
        drop = worse_by(recipe.metric, reference, one.metric)
        kept = drop <= recipe.accuracy_budget
        advice = "" if kept else "raise accuracy_budget, train on more data, or leave the variant out"
        gates.append(
            Gate(f"{recipe.metric.name} drop on {one.engine}", variant, drop, recipe.accuracy_budget, kept, advice)
        )
    return gates


def speed(variant: str, latency_us: float, float_latency_us: float) -> Gate:
    """Return the receipt of a quantized variant's speed; slower is marked and does not stop the release."""
    ratio = latency_us / float_latency_us
    advice = "slower than float32 on the machine that measured; marked" if is_slower(ratio) else ""
    return Gate("speed", variant, ratio, SLOWER_RATIO, True, advice)


def is_slower(ratio: float) -> bool:
    """Say whether a latency, as a ratio to the float one, is slower by more than noise."""
    return ratio > SLOWER_RATIO


def golden(engine: str, variant: str, error_ppm: float, tolerance_ppm: int, problem: str = "") -> Gate:
    """Return the receipt of the golden rows in a child process; `problem` is why the child refused, if it did."""
    error = math.inf if problem else error_ppm
    return Gate(f"golden on {engine}", variant, error, tolerance_ppm, not problem, problem)


def tolerance_ppm(recipe: Recipe, variant: str, measured: Iterable[Evaluated]) -> int:
    """Return how far a variant's golden outputs may be off on other machines, within the recipe's limit."""
    precision = precision_of(variant)
    worst = max(one.golden_ppm for one in measured)
    return min(recipe.parity_limits_ppm[precision], max(FLOORS_PPM[precision], HEADROOM * worst))


def worse_by(metric: Metric, reference: float, got: float) -> float:
    """Return how much worse `got` is; negative is better."""
    return reference - got if metric.higher_is_better else got - reference


def runtime_number(version: str) -> float:
    """Return a runtime version as major + minor / 100, so that 2.9 is less than 2.14; empty is 0."""
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    return int(major or 0) + int(minor or 0) / 100


def demand(gates: Iterable[Gate]) -> None:
    """Let a release go on only if every gate passed.

    Raises:
        GateError: at least one did not; the text holds the table of those.
    """
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return
    rows = [("gate", "variant", "measured", "limit", "what to change")]
    rows += [(gate.name, gate.variant, f"{gate.value:.6g}", f"{gate.limit:.6g}", gate.advice) for gate in failed]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = "\n".join(
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    )
    count = "1 gate" if len(failed) == 1 else f"{len(failed)} gates"
    raise GateError(f"the release did not pass {count} and nothing was written:\n{table}")
