"""Makes manifests and measurements with everything that a report shows, without training: numbers from a formula.

`bundle` writes a directory for them whose variants are a few bytes that no engine opens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from toprope_shared import manifest as manifests
from toprope_shared.manifest import (
    Artifact,
    Calibration,
    Fallback,
    Format,
    Gate,
    Golden,
    Manifest,
    Measured,
    Metric,
    Needs,
    Preprocessing,
    Privacy,
    Provenance,
    Tokenizer,
    Variant,
)
from toprope_shared.tensors import TensorSpec
from toprope_training import layout, measurements, variants
from toprope_training.bundle import describe
from toprope_training.measurements import (
    Cascade,
    CascadePoint,
    Confusion,
    Errors,
    Measurements,
    Parity,
    Reliability,
)

NAMES = (
    "tflite-float32",
    "tflite-float16",
    "tflite-dynamic-int8",
    "tflite-int8",
    "onnx-float32",
    "onnx-float16",
    "onnx-int8",
    "teacher-tflite-dynamic-int8",
    "teacher-onnx-float32",
)
DIGITS = tuple("0123456789")
SHRINK = {"float32": 1.0, "float16": 0.5, "dynamic-int8": 0.29, "int8": 0.27}
ENGINES = {Format.TFLITE: ("tflite-runtime", "litert"), Format.ONNX: ("onnxruntime",)}


@dataclass(frozen=True)
class Made:
    """A release's manifest and what was measured of it."""

    manifest: Manifest
    measurements: Measurements


def classifier(labels: tuple[str, ...] = DIGITS, names: tuple[str, ...] = NAMES) -> Made:
    """Return a classifier's release with a teacher, a tokenizer, a failed gate and every measurement."""
    built = tuple(_variant(name, index) for index, name in enumerate(names))
    manifest = Manifest(
        schema=1,
        model="digits",
        version="1.2.0",
        release_counter=7,
        inputs=(TensorSpec("image", "FP32", (-1, 8, 8, 1)),),
        outputs=(TensorSpec("probs", "FP32", (-1, len(labels))),),
        variants=built,
        golden=Golden(Artifact("9" * 64, 3_000), rows=8),
        metric=Metric("accuracy", higher_is_better=True),
        fallback=Fallback(Privacy.FEATURES, 1500),
        provenance=provenance(),
        labels=labels,
        gates=(*_gates(built), Gate("runtime", "tflite-int8", 2.15, 2.14, False, "use a simpler <b>layer</b>")),
        description="Reads one handwritten digit.",
        preprocessing=(
            Preprocessing("image", "grey values divided by 16"),
            Preprocessing("text", "words", Tokenizer(("the", "and", "of"), 16)),
        ),
    )
    return Made(manifest, _measurements(built, labels))


def regression() -> Made:
    """Return a regression's release with two variants, each with a histogram of its errors."""
    made = classifier(names=("tflite-float32", "tflite-int8"))
    plain = tuple(replace(variant, calibration=None) for variant in made.manifest.variants)
    counts = (1, 4, 15, 41, 78, 96, 80, 38, 12, 3)
    edges = tuple(-2.0 + 0.4 * number for number in range(len(counts) + 1))
    histograms = tuple(Errors(variant.name, edges, counts) for variant in plain)
    manifest = replace(
        made.manifest,
        model="linear",
        labels=(),
        variants=plain,
        metric=Metric("mse", higher_is_better=False),
        preprocessing=(),
    )
    return Made(manifest, Measurements(holdout_rows=368, parity=made.measurements.parity, errors=histograms))


def provenance() -> Provenance:
    """Return where these releases came from."""
    return Provenance(
        recipe="digits",
        parameters={"epochs": 10, "learning_rate": 0.001, "augment": True},
        data_sha256="a" * 64,
        weights_sha256="b" * 64,
        seed=3,
        source_revision="c" * 40,
        packages={"keras": "3.15.0", "numpy": "1.26.4", "python": "3.11.9", "tensorflow-cpu": "2.21.0"},
        created=1_700_000_000,
    )


def bundle(folder: Path, made: Made) -> Path:
    """Write a bundle directory that opens, with measurements, and return it."""
    folder.mkdir(parents=True)
    built = []
    for variant in made.manifest.variants:
        (folder / variant.filename).write_bytes(variant.name.encode())
        built.append(replace(variant, artifact=describe(folder / variant.filename, chunked=False)))
    (folder / layout.GOLDEN).write_bytes(b"golden")
    golden = replace(made.manifest.golden, artifact=describe(folder / layout.GOLDEN, chunked=False))
    manifest = replace(made.manifest, variants=tuple(built), golden=golden)
    (folder / layout.MANIFEST).write_bytes(manifests.encode(manifest))
    measurements.write(folder / layout.MEASUREMENTS, made.measurements)
    return folder


def replace(value: Any, **changes: object) -> Any:
    """Return a manifest, or a part of one, with some fields changed."""
    return msgspec.structs.replace(value, **changes)


def _variant(name: str, index: int) -> Variant:
    teacher, precision = variants.of_teacher(name), variants.precision_of(name)
    length = round((1_900_000 if teacher else 110_000) * SHRINK[precision])
    latency = (900.0 if teacher else 42.0) * (0.6 + 0.15 * (index % 4))
    metric = (0.9978 if teacher else 0.9866) - 0.0022 * (precision == "int8") - 0.0004 * (precision == "dynamic-int8")
    calibrated = not teacher and precision != variants.FLOAT16
    return Variant(
        name=name,
        format=variants.format_of(name),
        precision=precision,
        placement=variants.placement(name, {}),
        artifact=Artifact(f"{index + 1:064x}", length),
        tolerance_ppm=20_000 if "int8" in precision else 100,
        needs=Needs(engines=ENGINES[variants.format_of(name)], memory_bytes=9_000_000),
        measured=Measured(metric, latency, 0.02 if "int8" in precision else 1.2e-7, name == "tflite-int8", "litert/2.3.0"),
        reference=variants.reference_of(name),
        calibration=_calibration(certified=precision == "float32") if calibrated else None,
    )


def _calibration(*, certified: bool) -> Calibration:
    return Calibration("probs", False, 1.31, 0.834 if certified else 0.5, 0.05, 0.95, certified, 449, 0.93)


def _gates(built: tuple[Variant, ...]) -> tuple[Gate, ...]:
    found = [Gate("accuracy", "reference", 0.9866, 0.95, True)]
    for variant in built:
        limit = variants.PARITY_LIMITS_PPM[variant.precision]
        found += [Gate(f"parity on {engine}", variant.name, limit * 0.4, limit, True) for engine in variant.needs.engines]
    return tuple(found)


def _measurements(built: tuple[Variant, ...], labels: tuple[str, ...]) -> Measurements:
    parity = tuple(
        Parity(variant.name, engine, _quantiles(variants.PARITY_LIMITS_PPM[variant.precision] * (0.4 + 0.3 * number)))
        for variant in built
        for number, engine in enumerate(variant.needs.engines)
    )
    edge = [variant.name for variant in built if variant.calibration]
    teachers = [variant.name for variant in built if variants.of_teacher(variant.name)]
    return Measurements(
        holdout_rows=449,
        parity=parity,
        confusion=tuple(Confusion(name, _confused(len(labels))) for name in edge[:3]),
        reliability=tuple(_reliability(name) for name in edge[:3]),
        cascades=tuple(_cascade(name, teachers[-1]) for name in edge[:3] if teachers),
    )


def _quantiles(worst: float) -> tuple[float, ...]:
    return (0.0, worst * 0.02, worst * 0.15, worst * 0.5, worst)


def _confused(count: int) -> tuple[tuple[int, ...], ...]:
    def cell(true: int, called: int) -> int:
        if true == called:
            return 38 + true % 5
        return 3 if (true * 7 + called) % count == 1 else int((true + called * 3) % count == 2)

    return tuple(tuple(cell(true, called) for called in range(count)) for true in range(count))


def _reliability(name: str) -> Reliability:
    counts = (0, 0, 2, 5, 9, 12, 18, 30, 61, 312)
    confidence = tuple((number + 0.55) / 10 if rows else 0.0 for number, rows in enumerate(counts))
    accuracy = tuple(min(1.0, value * 1.04 + 0.03 * (number % 2)) for number, value in enumerate(confidence))
    return Reliability(name, counts, confidence, accuracy, before=0.081, after=0.012)


def _cascade(name: str, cloud: str) -> Cascade:
    def point(tau: float) -> CascadePoint:
        sent = tau**3
        return CascadePoint(tau, sent, 0.9844 + 0.0134 * (1 - (1 - sent) ** 6))

    points = tuple(point(number / 40) for number in range(41))
    return Cascade(name, cloud, points, point(0.5), edge=0.9844, cloud=0.9978)
