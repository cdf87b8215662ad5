"""The gates that a release passes before it may be signed, each with its receipt. Pure: measurements in, verdicts out.

A gate that fails stops the release with a table that says what, by how much, and what to change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from toprope_shared.errors import GateError
from toprope_shared.manifest import Format, Gate, Metric
from toprope_training import variants
from toprope_training.steps import Converted, Evaluated
from toprope_training.terms import Terms

# The oldest runtime that releases are made for: tflite-runtime's last version.
TARGET_ENGINE = "tflite-runtime"
TARGET_RUNTIME = "2.14.0"
# Above this ratio to the float variant's latency a quantized variant is marked slower; below it is noise.
SLOWER_RATIO = 1.05
# Tolerance of the golden outputs: three times what was measured here, and at least what other processors round differently.
HEADROOM = 3
FLOORS_PPM: Mapping[str, int] = {
    variants.FLOAT32: 100,
    variants.FLOAT16: 2_000,
    variants.DYNAMIC_INT8: 20_000,
    variants.INT8: 20_000,
}

_FLEX = "Flex"
_RUNS = "runs on"


def learned(terms: Terms, metric: float) -> list[Gate]:
    """Hold the reference's own metric against the worst that the recipe takes."""
    if terms.required is None:
        return []
    good = metric >= terms.required if terms.metric.higher_is_better else metric <= terms.required
    advice = "" if good else "the training itself fell short: train longer, mend the data, or change `required`"
    return [Gate(terms.metric.name, "reference", metric, terms.required, good, advice)]


def taught(terms: Terms, metric: float, teacher_metric: float | None) -> list[Gate]:
    """Return the receipt of a teacher's metric beside its student's; a teacher that is no better does not stop the release."""
    if teacher_metric is None:
        return []
    better = worse_by(terms.metric, metric, teacher_metric) < 0
    advice = "" if better else "no better than the student: the fallback costs a call and brings nothing; marked"
    return [Gate(f"{terms.metric.name} against the student", "teacher", teacher_metric, metric, True, advice)]


def conversion(converted: Converted, engines: Sequence[str]) -> list[Gate]:
    """Hold a converted file against what the target runtimes run.

    Args:
        converted: the file as its converter left it.
        engines: the engines that it must run on.
    """
    name, complaint = converted.name, converted.complaint
    if converted.problem:
        return [Gate("conversion", name, 1.0, 0.0, False, converted.problem)]
    if variants.format_of(name) is Format.SAVEDMODEL:  # nobody has converted it
        return []
    if variants.format_of(name) is Format.ONNX:
        return [Gate("onnx checker", name, float(bool(complaint)), 0.0, not complaint, complaint)]
    flex = [op for op in converted.needs.ops if op.startswith(_FLEX)]
    advice = f"no edge runtime has {', '.join(flex)}; replace the layer" if flex else ""
    return [*_runtime(converted, engines), Gate("flex", name, float(len(flex)), 0.0, not flex, advice)]


def _runtime(converted: Converted, engines: Sequence[str]) -> list[Gate]:
    """Hold the runtime that a file asks for against tflite-runtime's last one, where that engine is a target."""
    if TARGET_ENGINE not in engines:
        return []
    wanted = converted.needs.min_runtime
    needs, limit = runtime_number(wanted), runtime_number(TARGET_RUNTIME)
    advice = (
        f"an operator needs runtime {wanted}; use a simpler layer, leave the variant out, "
        f"or take {TARGET_ENGINE} out of the target engines"
    )
    return [Gate("runtime", converted.name, needs, limit, needs <= limit, "" if needs <= limit else advice)]


def runs(variant: str, engine: str, problem: str = "") -> Gate:
    """Return the receipt of a variant's first run on an engine; `problem` is why there was none."""
    return Gate(f"{_RUNS} {engine}", variant, float(not problem), 1.0, not problem, " ".join(problem.split()))


def quality(terms: Terms, reference: float, variant: str, one: Evaluated) -> list[Gate]:
    """Hold a variant's outputs and metric on one engine against the reference's."""
    precision = variants.precision_of(variant)
    limit, budget = terms.parity_limits_ppm[precision], terms.accuracy_budget
    near = one.parity_ppm <= limit
    parity = f"raise parity_limits_ppm[{precision!r}] if the metric holds, or leave the variant out"
    drop = worse_by(terms.metric, reference, one.metric)
    kept = drop <= budget
    metric = "raise accuracy_budget, train on more data, or leave the variant out"
    return [
        Gate(f"parity on {one.engine}", variant, one.parity_ppm, limit, near, "" if near else parity),
        Gate(f"{terms.metric.name} drop on {one.engine}", variant, drop, budget, kept, "" if kept else metric),
    ]


def examples(rows: int, *, made_up: bool) -> Gate:
    """Return the receipt of what an imported model was measured on; made-up examples are marked."""
    advice = "made up of random numbers: parity is measured, accuracy is not; give real ones with --golden FILE.npz"
    return Gate("examples", "reference", rows, 1.0, True, advice if made_up else "")


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


def size(variant: str, length: int, float_length: int, *, lenient: bool = False) -> Gate:
    """Return the receipt of a quantized variant's size; one that did not shrink is marked, and left out where that may be."""
    smaller = length < float_length
    advice = "" if smaller else "not smaller than float32: it has too few weights that can be quantized"
    return Gate("size", variant, length / float_length, 1.0, smaller or not lenient, advice)


def tolerance_ppm(terms: Terms, variant: str, measured: Iterable[Evaluated]) -> int:
    """Return how far a variant's golden outputs may be off on other machines, within the limit of its precision."""
    precision = variants.precision_of(variant)
    worst = max(one.golden_ppm for one in measured)
    return min(terms.parity_limits_ppm[precision], max(FLOORS_PPM[precision], HEADROOM * worst))


def worse_by(metric: Metric, reference: float, got: float) -> float:
    """Return how much worse `got` is; negative is better."""
    return reference - got if metric.higher_is_better else got - reference


def runtime_number(version: str) -> float:
    """Return a runtime version as major + minor / 100, so that 2.9 is less than 2.14; empty is 0, unreadable infinite."""
    if not version:
        return 0.0
    found = re.match(r"(\d+)\.(\d+)", version)
    return int(found[1]) + int(found[2]) / 100 if found else math.inf


class Receipts:
    """Collects the receipts of a release's gates, and says which variants go on.

    Args:
        lenient: a variant that does not pass is left out and does not stop the release.
        demanded: the variants that are never left out.
    """

    def __init__(self, *, lenient: bool = False, demanded: Collection[str] = ()) -> None:
        self._lenient = lenient
        self._demanded = demanded
        self._failed: list[Gate] = []
        self.passed: list[Gate] = []
        self.left_out: dict[str, str] = {}

    def take(self, gates: Iterable[Gate], *, variant: str = "") -> bool:
        """Note the gates of a variant, or the release's own; return whether all of them passed."""
        found = list(gates)
        bad = [gate for gate in found if not gate.passed]
        if not bad:
            self.passed += found
        elif self._lenient and variant and variant not in self._demanded:
            self.leave_out(variant, bad)
        else:
            self._failed += bad
        return not bad

    def leave_out(self, what: str, gates: Iterable[Gate]) -> None:
        """Note why a variant, or an engine for one, is done without."""
        self.left_out[what] = "; ".join(_told(gate) for gate in gates if not gate.passed)

    def of(self, names: Collection[str]) -> tuple[Gate, ...]:
        """Return the receipts of these variants and of the release itself."""
        gone = self.left_out.keys() - set(names)
        return tuple(gate for gate in self.passed if gate.variant not in gone)

    def demand(self) -> None:
        """Let the release go on only if nothing failed that can't be left out; see `demand`."""
        demand(self._failed)


def _told(gate: Gate) -> str:
    """Return why a gate failed: a measured figure where that says it, else what was said."""
    if " on " in gate.name and gate.limit != 1.0 and math.isfinite(gate.value):
        return f"{gate.name} is {gate.value:.6g}, the limit {gate.limit:.6g}"
    return f"{gate.name}: {gate.advice}"


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
    if any(gate.name.startswith(_RUNS) for gate in failed):
        table += "\n  Where an engine can't run a variant: replace the layer, or leave the variant or the engine out."
    count = "1 gate" if len(failed) == 1 else f"{len(failed)} gates"
    raise GateError(f"the release did not pass {count} and nothing was written:\n{table}")
