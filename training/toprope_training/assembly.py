"""Assembles a release from converted files: measures them, holds them against the gates, tries them out, writes the manifest.

The same for trained and imported models. The engines live in child processes; this one holds none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from toprope_shared import manifest as manifests
from toprope_shared import probe
from toprope_shared.chunks import WHOLE_BYTES
from toprope_shared.deltas import worth_offering
from toprope_shared.engines import find_engines
from toprope_shared.errors import GateError, InputError, ProbeError
from toprope_shared.manifest import Artifact, Delta, Fallback, Format, Gate, Golden, Manifest, Measured, Provenance, Variant
from toprope_training import arrays, bundle, gates, layout, measurements, observe, variants
from toprope_training.bundle import Bundle
from toprope_training.children import Children, StepError
from toprope_training.delta_regions import make_delta
from toprope_training.monitor import monitor
from toprope_training.steps import Converted, Evaluate, Evaluated, Quantize, Score
from toprope_training.terms import Terms

# The first of a format's engines that is installed measures; the others must agree with the reference too.
ENGINES: Mapping[Format, tuple[str, ...]] = {
    Format.TFLITE: ("tflite-runtime", "litert"),
    Format.ONNX: ("onnxruntime",),
    Format.SAVEDMODEL: ("tensorflow",),
}
EVALUATE_S = 600.0
QUANTIZE_S = 1800.0


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for; `created` is in seconds since 1970."""

    version: str
    counter: int
    created: int


@dataclass(frozen=True, slots=True)
class _Made:
    """One variant's file with everything that was found out about it."""

    converted: Converted
    file: Path
    measured: tuple[Evaluated, ...]

    @property
    def name(self) -> str:
        return self.converted.name


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One variant on one engine."""

    engine: str
    gates: list[Gate]
    evaluated: Evaluated | None = None

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True, slots=True)
class Assembly:
    """The steps from converted files to a release in one folder.

    Attributes:
        terms: what the release promises.
        score: how a variant's answers are scored.
        metrics: the references' own metrics, by reference (`out`, `teacher`).
        folder: holds golden set, holdout and representative rows.
        children: where engines run.
        receipts: of the gates so far.
        bases: earlier releases that devices may hold, to which deltas are made.
    """

    terms: Terms
    score: Score
    metrics: Mapping[str, float]
    folder: Path
    children: Children
    receipts: gates.Receipts = field(default_factory=gates.Receipts)
    bases: Sequence[Bundle] = ()

    def release(self, converted: Sequence[Converted], order: Order, provenance: Provenance, rows: int) -> Manifest:
        """Measure the files, hold them against the gates and write manifest and measurements.

        Args:
            converted: what the converters made.
            order: version, counter and time of the release.
            provenance: where it came from.
            rows: of the golden set.

        Raises:
            GateError: the release did not pass.
        """
        made = self._measure(self._derive(self._accept(converted)))
        self.children.progress("Trying the variants out in child processes", 0, 0)
        golden = self.folder / layout.GOLDEN
        artifact = bundle.describe(golden, chunked=golden.stat().st_size > WHOLE_BYTES)
        passed = self._finish(made, artifact)
        observed = self._observe([item for item in made if item.name in {variant.name for variant in passed}])
        finished = [
            msgspec.structs.replace(
                variant, calibration=observed.calibrations.get(variant.name), deltas=self._deltas(variant)
            )
            for variant in passed
        ]
        manifest = Manifest(
            schema=1,
            model=self.terms.model,
            version=order.version,
            release_counter=order.counter,
            inputs=self.terms.inputs,
            outputs=self.terms.outputs,
            variants=tuple(finished),
            golden=Golden(artifact, rows, self.terms.stacked),
            metric=self.terms.metric,
            fallback=Fallback(self.terms.privacy, self.terms.deadline_ms, self.terms.input_privacy),
            provenance=provenance,
            labels=self.terms.labels,
            gates=self.receipts.of([variant.name for variant in finished]),
            description=self.terms.description,
            preprocessing=self.terms.preprocessing,
            monitoring=monitor(self.terms, self.folder / layout.HOLDOUT),
        )
        left_out = tuple(f"{name}: {why}" for name, why in self.receipts.left_out.items())
        measurements.write(
            self.folder / layout.MEASUREMENTS, msgspec.structs.replace(observed.measurements, left_out=left_out)
        )
        (self.folder / layout.MANIFEST).write_bytes(manifests.encode(manifest))
        self._clear({variant.filename for variant in finished})
        return manifest

    def _accept(self, converted: Sequence[Converted]) -> list[Converted]:
        """Return the files that the converters' own gates let pass."""
        engines = () if self.terms.lenient else self.terms.engines
        accepted = [one for one in converted if self.receipts.take(gates.conversion(one, engines), variant=one.name)]
        self.receipts.demand()
        return accepted

    def _derive(self, converted: list[Converted]) -> list[Converted]:
        """Return the files and those that are made from them: ONNX in float16 and int8."""
        have = {one.name for one in converted}
        derived: list[Converted] = []
        for name in self.terms.variants:
            base = variants.sibling(name, variants.FLOAT32)
            if name in have or variants.format_of(name) != "onnx" or base not in have:
                continue
            request = Quantize(
                source=str(self.folder / variants.filename(base)),
                representative=str(self.folder / layout.REPRESENTATIVE),
                variant=name,
                out=str(self.folder),
                stacked=self.terms.stacked,
                lenient=self.terms.lenient,
            )
            derived.append(self._quantize(request))
        return [*converted, *self._accept(derived)]

    def _quantize(self, request: Quantize) -> Converted:
        try:
            (result,) = self.children.run([("quantize", request)], wall_s=QUANTIZE_S)
        except StepError as error:
            if not self.terms.lenient:
                raise
            return Converted(request.variant, manifests.Needs(), str(error))
        return msgspec.json.decode(result, type=Converted)

    def _measure(self, converted: list[Converted]) -> list[_Made]:
        """Return the variants that hold on the engines that they must run on."""
        installed = self._installed({variants.format_of(one.name) for one in converted})
        made = []
        ordered = sorted(converted, key=lambda one: self.terms.variants.index(one.name))
        for number, one in enumerate(ordered):
            self.children.progress("Measuring the variants", number, len(ordered))
            file = self.folder / variants.filename(one.name)
            measured = self._on_engines(one, file, installed[variants.format_of(one.name)])
            if measured:
                made.append(_Made(one, file, measured))
        self.receipts.demand()
        self._require(made)
        self.children.progress("Measuring the variants", len(ordered), len(ordered))
        return made

    def _require(self, left: Sequence[object]) -> None:
        if not left:
            why = "; ".join(f"{name}: {text}" for name, text in self.receipts.left_out.items())
            raise GateError(f"no variant of {self.terms.model} passed its gates, so there is no release: {why}")

    def _on_engines(self, one: Converted, file: Path, engines: list[str]) -> tuple[Evaluated, ...]:
        """Return how a variant did with each of its engines; none when it did not pass."""
        tries = [self._on_engine(one.name, file, engine) for engine in engines]
        good = [attempt for attempt in tries if attempt.passed]
        if self.terms.lenient and good:  # one engine may fail an imported model as long as another is left
            for attempt in tries:
                if not attempt.passed:
                    self.receipts.leave_out(f"{one.name} on {attempt.engine}", attempt.gates)
            tries = good
        passed = self.receipts.take((gate for attempt in tries for gate in attempt.gates), variant=one.name)
        return tuple(attempt.evaluated for attempt in tries if attempt.evaluated is not None) if passed else ()

    def _on_engine(self, name: str, file: Path, engine: str) -> _Attempt:
        request = Evaluate(
            score=self.score,
            file=str(file),
            engine=engine,
            inputs=self.terms.inputs,
            outputs=self.terms.outputs,
            reference=variants.reference_of(name),
            compared=self.terms.compared,
            holdout=str(self.folder / layout.HOLDOUT),
            golden=str(self.folder / layout.GOLDEN),
            answers=str(self._answers(name, engine)),
            stacked=self.terms.stacked,
        )
        try:
            (result,) = self.children.run([("evaluate", request)], wall_s=EVALUATE_S)
        except StepError as error:
            return _Attempt(engine, [gates.runs(name, engine, str(error))])
        evaluated = msgspec.json.decode(result, type=Evaluated)
        reference = self.metrics[variants.reference_of(name)]
        found = [gates.runs(name, engine), *gates.quality(self.terms, reference, name, evaluated)]
        return _Attempt(engine, found, evaluated)

    def _observe(self, made: Sequence[_Made]) -> observe.Observed:
        targets = arrays.load(self.folder / layout.HOLDOUT).get("targets")
        answers = {item.name: arrays.load(self._answers(item.name, item.measured[0].engine)) for item in made}
        return observe.observe(self.terms, targets, answers, {item.name: item.measured for item in made})

    def _finish(self, made: Sequence[_Made], golden: Artifact) -> list[Variant]:
        """Try every variant out as it will be shipped; return the manifest's variants."""
        floats = {item.name: item for item in made if variants.precision_of(item.name) == variants.FLOAT32}
        finished = []
        for item in made:
            artifact = bundle.describe(item.file, chunked=True)
            tolerance = gates.tolerance_ppm(self.terms, item.name, item.measured)
            tried, memory = self._try_out(item, artifact, golden, tolerance)
            plain = floats.get(variants.sibling(item.name, variants.FLOAT32))
            slower = False
            if plain is not None and plain is not item:
                here, there = item.measured[0].latency_us, plain.measured[0].latency_us
                slower = gates.is_slower(here / there)
                length = plain.file.stat().st_size
                tried.append(gates.size(item.name, artifact.length, length, lenient=self.terms.lenient))
                tried.append(gates.speed(item.name, here, there))
            if not self.receipts.take(tried, variant=item.name):
                continue
            finished.append(self._variant(item, artifact, tolerance, memory, slower=slower))
        self.receipts.demand()
        self._require(finished)
        return finished

    def _deltas(self, variant: Variant) -> tuple[Delta, ...]:
        """Make deltas from the same variant of earlier releases, where they are worth it."""
        file = self.folder / variant.filename
        made = []
        for base in self.bases if variant.format is not Format.SAVEDMODEL else ():  # no device fetches it
            old = next((one for one in base.manifest.variants if one.name == variant.name), None)
            if old is None or old.artifact.sha256 == variant.artifact.sha256:
                continue
            self.children.progress(f"Making deltas from {base.manifest.version}", 0, 0)
            delta = make_delta(base.path(old), file)
            if worth_offering(len(delta), variant.artifact.length):
                path = bundle.delta_path(file, old.artifact.sha256)
                path.write_bytes(delta)
                made.append(Delta(old.artifact.sha256, bundle.describe(path, chunked=len(delta) > WHOLE_BYTES)))
        return tuple(made)

    def _try_out(self, item: _Made, artifact: Artifact, golden: Artifact, tolerance: int) -> tuple[list[Gate], int]:
        receipts, memory = [], 0
        if variants.format_of(item.name) is Format.SAVEDMODEL:  # measured as it is served: by a process of its own
            (one,) = item.measured
            return [gates.golden(one.engine, item.name, one.golden_ppm, tolerance)], one.memory_bytes
        for engine in (one.engine for one in item.measured):
            request = probe.ProbeRequest(
                engine=engine,
                file=str(item.file),
                sha256=artifact.sha256,
                golden=str(self.folder / layout.GOLDEN),
                golden_sha256=golden.sha256,
                inputs=self.terms.inputs,
                outputs=self.terms.outputs,
                tolerance_ppm=tolerance,
                reference=variants.reference_of(item.name),
                stacked=self.terms.stacked,
            )
            try:
                result = probe.probe(request)
            except ProbeError as error:
                receipts.append(gates.golden(engine, item.name, 0, tolerance, str(error)))
                continue
            memory = max(memory, result.memory_bytes)
            receipts.append(gates.golden(engine, item.name, result.error_ppm, tolerance))
        return receipts, memory

    def _variant(self, item: _Made, artifact: Artifact, tolerance: int, memory: int, *, slower: bool) -> Variant:
        first, engines = item.measured[0], tuple(one.engine for one in item.measured)
        return Variant(
            name=item.name,
            format=variants.format_of(item.name),
            precision=variants.precision_of(item.name),
            placement=self.terms.placements[item.name],
            artifact=artifact,
            tolerance_ppm=tolerance,
            needs=msgspec.structs.replace(item.converted.needs, memory_bytes=memory, engines=engines),
            measured=Measured(first.metric, first.latency_us, first.parity, slower, first.runtime),
            reference=variants.reference_of(item.name),
        )

    def _answers(self, name: str, engine: str) -> Path:
        return self.folder / f"{name}.{engine}{layout.ANSWERS}"

    def _installed(self, formats: set[Format]) -> dict[Format, list[str]]:
        """Return the usable target engines by format.

        Raises:
            InputError: a format has none.
        """
        usable = {}
        for kind in formats:
            # A recipe's engines are those of devices.
            cloud = kind is Format.SAVEDMODEL
            found, missing = find_engines([name for name in ENGINES[kind] if cloud or name in self.terms.engines])
            if not found:
                why = "; ".join(item.why for item in missing) or f"none of {', '.join(ENGINES[kind])} is a target engine"
                raise InputError(f"no engine can run {kind} files here: {why}")
            usable[kind] = list(found)
        return usable

    def _clear(self, kept: set[str]) -> None:
        """Remove what only the making needed, and the files of variants that were left out."""
        names = [*layout.SCRATCH, *(path.name for path in self.folder.glob(f"*{layout.ANSWERS}"))]
        for kind in ENGINES:
            gone = [path.name for path in self.folder.glob(f"*.{kind}") if path.name not in kept]
            names += [name + end for name in gone for end in ("", layout.CHUNKS)]
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
