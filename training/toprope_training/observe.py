"""Looks at what the variants answered on the holdout: calibrations for the manifest, numbers for the report's pictures.

Pure: arrays in, values out. The answers are those of each variant's first engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from toprope_shared.manifest import Calibration, Placement
from toprope_shared.tensors import Array, Tensors
from toprope_training import calibrate
from toprope_training.measurements import Cascade, Confusion, Errors, Measurements, Parity, Reliability
from toprope_training.metrics import class_rows
from toprope_training.steps import Evaluated
from toprope_training.terms import Terms
from toprope_training.variants import of_teacher

BINS = 30
# Fewer held-out rows can't be dealt into parts for temperature, tau and picture.
MIN_CALIBRATION_ROWS = 40


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of a release's variants on the holdout."""

    measurements: Measurements
    calibrations: Mapping[str, Calibration]


def observe(
    terms: Terms, targets: Array | None, answers: Mapping[str, Tensors], measured: Mapping[str, tuple[Evaluated, ...]]
) -> Observed:
    """Return what the answers show.

    Args:
        terms: of the release.
        targets: one a held-out row, None where they are not known.
        answers: each variant's outputs on the holdout, by variant.
        measured: how each variant did with each engine.
    """
    rows = len(next(iter(next(iter(answers.values())).values())))
    classes = terms.class_output()
    answers = {name: _as_rows(outputs, classes) for name, outputs in answers.items()}
    known = bool(classes) and _are_classes(targets, rows, next(iter(answers.values()))[classes].shape[1])
    views = list(_views(terms, classes, targets if known else None, answers))
    confusion = _confusions(classes, targets, answers) if known and targets is not None else ()
    return Observed(
        Measurements(
            holdout_rows=rows,
            parity=tuple(Parity(name, one.engine, one.quantiles_ppm) for name, all_ in measured.items() for one in all_),
            confusion=tuple(confusion),
            errors=() if known else tuple(_errors(terms, targets, answers)),
            reliability=tuple(view.reliability for view in views if known),
            cascades=tuple(view.cascade for view in views if known),
        ),
        {view.variant: view.calibration for view in views},
    )


@dataclass(frozen=True, slots=True)
class _View:
    variant: str
    calibration: Calibration
    reliability: Reliability
    cascade: Cascade


def _as_rows(outputs: Tensors, classes: str) -> Tensors:
    return {**outputs, classes: class_rows(outputs[classes])} if classes else outputs


def _are_classes(targets: Array | None, rows: int, classes: int) -> bool:
    if targets is None or targets.shape != (rows,) or targets.dtype.kind not in "iu":
        return False
    return bool(targets.min() >= 0 and targets.max() < classes)


def _views(terms: Terms, classes: str, targets: Array | None, answers: Mapping[str, Tensors]) -> Iterator[_View]:
    """Yield the calibration of every edge variant against the cloud's variant."""
    cloud = cloud_variant(terms, answers)
    if not classes or not cloud or len(answers[cloud][classes]) < MIN_CALIBRATION_ROWS:
        return
    above = answers[cloud][classes]
    truth = above.argmax(axis=1) if targets is None else targets
    for name, outputs in answers.items():
        if name == cloud or terms.placements[name] is Placement.CLOUD:
            continue
        both = calibrate.Answers(outputs[classes], above, truth, terms.logits)
        calibration = calibrate.calibrate(classes, both, alpha=terms.alpha, margin=terms.margin)
        yield _View(
            name,
            calibration,
            calibrate.reliability(name, both, calibration),
            calibrate.cascade(name, cloud, both, calibration),
        )


def cloud_variant(terms: Terms, answers: Mapping[str, Tensors]) -> str:
    """Return the variant that the cloud answers with: the teacher's where there is one; "" when nothing is placed there."""
    placed = [name for name in answers if terms.placements[name] is not Placement.EDGE]
    return next((name for name in placed if of_teacher(name)), placed[0] if placed else "")


def _confusions(classes: str, targets: Array, answers: Mapping[str, Tensors]) -> Iterator[Confusion]:
    for name, outputs in answers.items():
        count = outputs[classes].shape[1]
        table = np.zeros((count, count), np.int64)
        np.add.at(table, (targets, outputs[classes].argmax(axis=1)), 1)
        yield Confusion(name, tuple(tuple(row) for row in table.tolist()))


def _errors(terms: Terms, targets: Array | None, answers: Mapping[str, Tensors]) -> Iterator[Errors]:
    """Yield histograms of output minus target for the first output that the targets fit, in the same bins for all."""
    if targets is None or targets.dtype.kind != "f":
        return
    output = next((spec.name for spec in terms.outputs if _first(answers)[spec.name].shape == targets.shape), "")
    if not output:
        return
    apart = {name: (outputs[output].astype(np.float64) - targets).ravel() for name, outputs in answers.items()}
    apart = {name: values[np.isfinite(values)] for name, values in apart.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(apart.values())), bins=BINS)
    for name, values in apart.items():
        counts, _ = np.histogram(values, bins=edges)
        yield Errors(name, tuple(edges.tolist()), tuple(counts.tolist()))


def _first(answers: Mapping[str, Tensors]) -> Tensors:
    return next(iter(answers.values()))
