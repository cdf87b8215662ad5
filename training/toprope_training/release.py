"""Makes a release: trains, converts, quantizes, measures, holds it against its gates and writes the bundle.

TensorFlow and the engines live in child processes, never two that clash in one; this process holds neither. A gate that
fails, an error or a kill leaves no bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from toprope_shared import manifest as manifests
from toprope_shared import probe
from toprope_shared.chunks import WHOLE_BYTES
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.engines import find_engines
from toprope_shared.errors import InputError, ProbeError
from toprope_shared.manifest import Artifact, Fallback, Format, Gate, Golden, Manifest, Measured, Variant, Version
from toprope_training import bundle, catalogue, gates, layout, provenance
from toprope_training.bundle import Bundle
from toprope_training.children import Children
from toprope_training.recipe import Progress, Recipe
from toprope_training.steps import Convert, Converted, Evaluate, Evaluated, Quantize, Train, Trained
from toprope_training.workshop import workshop

# The first of a format's engines that is installed measures; the others must agree with the reference too.
ENGINES = {"tflite": ("tflite-runtime", "litert"), "onnx": ("onnxruntime",)}
FLOAT = "float32"
QUANTIZED_ONNX = "onnx-int8"


@dataclass(frozen=True, slots=True)
class _Made:
    """One variant's file with everything that was found out about it."""

    converted: Converted
    file: Path
    measured: tuple[Evaluated, ...]


def quiet(text: str, done: int = 0, total: int = 0) -> None:
    """Take progress and say nothing."""


def make(
    reference: str,
    out: Path,
    *,
    version: str = "1.0.0",
    seed: int = 0,
    force: bool = False,
    release_counter: int | None = None,
    progress: Progress = quiet,
    clock: Clock | None = None,
) -> tuple[Bundle, str]:
    """Make a release and return its bundle and what the recipe says about what was learned.

    Args:
        reference: a built-in recipe's name or the path of a recipe file.
        out: the bundle directory to make.
        version: semantic version of the release.
        seed: of data and training.
        force: replace a bundle that stands at `out`.
        release_counter: grows with every release of a model; None is the seconds since 1970.
        progress: told a sentence for each step.

    Raises:
        InputError: an argument or the recipe is wrong.
        GateError: the release did not pass.
        TopropeError: a child process failed; the text names its log.
    """
    try:
        msgspec.convert(version, Version)
    except msgspec.ValidationError as error:
        raise InputError(f"the version {version!r} is not a semantic version such as 1.2.0: {error}") from error
    recipe = catalogue.load(reference)
    out = out.resolve()
    kept_log = out.parent / f"{out.name}.failed.log"
    created = int((clock or SystemClock()).now())
    order = _Order(version, seed, created, created if release_counter is None else release_counter)
    with workshop(out, force=force) as folder:
        making = _Making(reference, recipe, folder, Children(folder / layout.LOG, kept_log, progress))
        summary = making.release(order)
        Bundle.open(folder)
    kept_log.unlink(missing_ok=True)
    return Bundle.open(out), summary


@dataclass(frozen=True, slots=True)
class _Order:
    """What was asked for; `created` is in seconds since 1970."""

    version: str
    seed: int
    created: int
    counter: int


@dataclass(frozen=True, slots=True)
class _Making:
    """The steps of one release in one folder."""

    reference: str
    recipe: Recipe
    folder: Path
    children: Children

    def release(self, order: _Order) -> str:
        """Make everything, write the manifest and return what the recipe says was learned."""
        trained, made, passed = self.variants(order.seed)
        self.children.progress("Trying the variants out in child processes", 0, 0)
        golden = self.folder / layout.GOLDEN
        artifact = bundle.describe(golden, chunked=golden.stat().st_size > WHOLE_BYTES)
        variants, receipts = self.finish(made, artifact)
        gates.demand(receipts)
        manifest = Manifest(
            schema=1,
            model=self.recipe.name,
            version=order.version,
            release_counter=order.counter,
            inputs=self.recipe.inputs,
            outputs=self.recipe.outputs,
            variants=tuple(variants),
            golden=Golden(artifact, trained.rows),
            metric=self.recipe.metric,
            fallback=Fallback(self.recipe.privacy, self.recipe.deadline_ms),
            provenance=provenance.collect(self.reference, self.recipe, trained, order.seed, order.created),
            labels=self.recipe.labels,
            gates=(*passed, *receipts),
            description=self.recipe.description,
        )
        (self.folder / layout.MANIFEST).write_bytes(manifests.encode(manifest))
        for name in layout.SCRATCH:
            (self.folder / name).unlink()
        return trained.summary

    def variants(self, seed: int) -> tuple[Trained, list[_Made], list[Gate]]:
        """Train, convert and measure; return the variants and the receipts of the gates passed on the way."""
        trained, converted = self._train(seed)
        passed = gates.learned(self.recipe, trained.metric)
        for one in converted:
            passed += gates.conversion(one)
        gates.demand(passed)
        if QUANTIZED_ONNX in self.recipe.variants:
            quantized = self._quantize()
            converted.append(quantized)
            passed += gates.conversion(quantized)
            gates.demand(passed)
        made = self._measure(converted)
        for item in made:
            passed += gates.quality(self.recipe, trained.metric, item.converted.name, item.measured)
        gates.demand(passed)
        return trained, made, passed

    def finish(self, made: list[_Made], golden: Artifact) -> tuple[list[Variant], list[Gate]]:
        """Try every variant out as it will be shipped; return the manifest's variants and the receipts."""
        floats = {gates.format_of(item.converted.name): item.measured[0] for item in made if _is_float(item)}
        variants, receipts = [], []
        for item in made:
            name = item.converted.name
            artifact = bundle.describe(item.file, chunked=True)
            tolerance = gates.tolerance_ppm(self.recipe, name, item.measured)
            tried, memory = self._try_out(item, artifact, golden, tolerance)
            receipts += tried
            slower = False
            if not _is_float(item) and (plain := floats.get(gates.format_of(name))):
                slower = gates.is_slower(item.measured[0].latency_us / plain.latency_us)
                receipts.append(gates.speed(name, item.measured[0].latency_us, plain.latency_us))
            variants.append(self._variant(item, artifact, tolerance, memory, slower=slower))
        return variants, receipts

    def _train(self, seed: int) -> tuple[Trained, list[Converted]]:
        """Train and convert in one child, because TensorFlow takes seconds to load."""
        self.children.progress("Starting TensorFlow", 0, 0)
        direct = tuple(name for name in self.recipe.variants if name != QUANTIZED_ONNX)
        train = Train(self.reference, seed, str(self.folder))
        convert = Convert(
            saved_model=str(self.folder / layout.SAVED_MODEL),
            representative=str(self.folder / layout.REPRESENTATIVE),
            inputs=self.recipe.inputs,
            variants=direct,
            out=str(self.folder),
        )
        first, second = self.children.run([("train", train), ("convert", convert)])
        return msgspec.json.decode(first, type=Trained), msgspec.json.decode(second, type=list[Converted])

    def _quantize(self) -> Converted:
        request = Quantize(
            source=str(self.folder / f"onnx-{FLOAT}.onnx"),
            representative=str(self.folder / layout.REPRESENTATIVE),
            target=str(self.folder / f"{QUANTIZED_ONNX}.onnx"),
        )
        (result,) = self.children.run([("quantize", request)])
        return msgspec.json.decode(result, type=Converted)

    def _measure(self, converted: list[Converted]) -> list[_Made]:
        installed = _installed({gates.format_of(one.name) for one in converted})
        made = []
        for number, one in enumerate(sorted(converted, key=lambda one: self.recipe.variants.index(one.name))):
            self.children.progress("Measuring the variants", number, len(converted))
            kind = gates.format_of(one.name)
            file = self.folder / f"{one.name}.{kind}"
            asked = [
                Evaluate(
                    self.reference, str(file), engine, str(self.folder / layout.HOLDOUT), str(self.folder / layout.GOLDEN)
                )
                for engine in installed[kind]
            ]
            results = self.children.run([("evaluate", request) for request in asked])
            measured = tuple(msgspec.json.decode(result, type=Evaluated) for result in results)
            made.append(_Made(one, file, measured))
        return made

    def _try_out(self, item: _Made, artifact: Artifact, golden: Artifact, tolerance: int) -> tuple[list[Gate], int]:
        receipts, memory = [], 0
        for engine in (one.engine for one in item.measured):
            request = probe.ProbeRequest(
                engine=engine,
                file=str(item.file),
                sha256=artifact.sha256,
                golden=str(self.folder / layout.GOLDEN),
                golden_sha256=golden.sha256,
                inputs=self.recipe.inputs,
                outputs=self.recipe.outputs,
                tolerance_ppm=tolerance,
            )
            try:
                result = probe.probe(request)
            except ProbeError as error:
                receipts.append(gates.golden(engine, item.converted.name, 0, tolerance, str(error)))
                continue
            memory = max(memory, result.memory_bytes)
            receipts.append(gates.golden(engine, item.converted.name, result.error_ppm, tolerance))
        return receipts, memory

    def _variant(self, item: _Made, artifact: Artifact, tolerance: int, memory: int, *, slower: bool) -> Variant:
        name, first = item.converted.name, item.measured[0]
        return Variant(
            name=name,
            format=Format(gates.format_of(name)),
            precision=gates.precision_of(name),
            placement=self.recipe.placements[name],
            artifact=artifact,
            tolerance_ppm=tolerance,
            needs=msgspec.structs.replace(item.converted.needs, memory_bytes=memory),
            measured=Measured(first.metric, first.latency_us, first.parity, slower, first.runtime),
        )


def _is_float(item: _Made) -> bool:
    return gates.precision_of(item.converted.name) == FLOAT


def _installed(formats: set[str]) -> Mapping[str, list[str]]:
    """Return the usable engines by format.

    Raises:
        InputError: a format has none.
    """
    usable = {}
    for kind in formats:
        found, missing = find_engines(ENGINES[kind])
        if not found:
            raise InputError(f"no engine can run {kind} files here: {'; '.join(item.why for item in missing)}")
        usable[kind] = list(found)
    return usable
