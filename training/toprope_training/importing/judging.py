"""Decides what an imported model is held to: from its owner's words, and where they are silent from what it answered."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from toprope_shared.errors import InputError
from toprope_shared.manifest import REFERENCE, TEACHER, Format, Placement, Privacy
from toprope_shared.tensors import Array, Tensors
from toprope_training import arrays, layout, scoring, variants
from toprope_training.assembly import ENGINES
from toprope_training.importing.reading import Found
from toprope_training.metrics import class_rows
from toprope_training.steps import MetricScore
from toprope_training.terms import Terms
from toprope_training.variants import PARITY_LIMITS_PPM

BUDGETS: Mapping[str, float] = {
    scoring.ACCURACY: 0.02,
    scoring.AGREEMENT: 0.02,
    scoring.SQUARED_ERROR: 0.02,
    scoring.DIFFERENCE: 0.1,
}
ENGINE_NAMES = tuple(name for names in ENGINES.values() for name in names)
ALPHA = 0.05
DEADLINE_MS = 2000
_ONE = 1e-3


@dataclass(frozen=True, slots=True)
class Wish:
    """What the owner says about a model beyond its file.

    Attributes:
        name: the model's name in toprope.
        version: semantic version of the release.
        cloud: a larger model's file with the same inputs and outputs, for the cloud; None is none.
        examples: `.npz` with rows first: `in.<name>`, and where known `out.<name>` and `targets`; None: made up here.
        shapes: by input, the whole shape of one call, for made-up examples of inputs with free sizes.
        labels: names of the classes.
        privacy: how much of a request may leave the device.
        metric: one of `scoring.METRICS`; None chooses by what is known.
        accuracy_budget: how much worse a variant's metric may be; None is `BUDGETS`.
        engines: the engines that matter.
        trust_pickle: the owner vouches for a pickle, which is a program.
    """

    name: str
    version: str = "1.0.0"
    cloud: Path | None = None
    examples: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    privacy: Privacy = Privacy.NONE
    metric: str | None = None
    accuracy_budget: float | None = None
    engines: tuple[str, ...] = ENGINE_NAMES
    trust_pickle: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model is held to.

    Attributes:
        metrics: the references' own metrics, by reference.
    """

    terms: Terms
    score: MetricScore
    metrics: Mapping[str, float]


def judge(wish: Wish, folder: Path, found: Mapping[str, Found], labels: tuple[str, ...]) -> Judged:
    """Return the terms of an imported model's release.

    Args:
        wish: the owner's words.
        folder: holds the holdout with the references' outputs.
        found: the models by reference.
        labels: names of the classes; empty where none are known.

    Raises:
        InputError: labels or metric do not fit the model.
    """
    first = found[REFERENCE]
    held_out = arrays.load(folder / layout.HOLDOUT)
    reference, targets = arrays.without(REFERENCE, held_out), held_out.get("targets")
    classes = _class_output(first, labels, reference)
    _check_targets(targets, reference[classes] if classes else None)
    score = _score(wish, first, reference, targets, classes)
    metric = scoring.METRICS[score.metric]
    names = tuple(name for kind, model in found.items() for name in _variants(kind, model, wish.engines))
    terms = Terms(
        model=wish.name,
        description="",
        inputs=first.inputs,
        outputs=first.outputs,
        labels=labels,
        metric=metric,
        privacy=wish.privacy,
        deadline_ms=DEADLINE_MS,
        accuracy_budget=BUDGETS[score.metric] if wish.accuracy_budget is None else wish.accuracy_budget,
        required=None,
        parity_limits_ppm=dict(PARITY_LIMITS_PPM),
        variants=names,
        placements={name: _placement(name, alone=TEACHER not in found) for name in names},
        engines=wish.engines,
        compared=tuple(spec.name for spec in first.outputs),
        classes=classes if labels or score.metric in (scoring.ACCURACY, scoring.AGREEMENT) else "",
        logits=bool(classes) and not _probabilities(class_rows(reference[classes])),
        alpha=ALPHA,
        preprocessing=first.preprocessing,
        stacked=first.stacked,
        lenient=True,
        demanded=tuple(one.name for model in found.values() for one in model.made),
    )
    judgements = scoring.scorer(score)
    metrics = {}
    for kind in found:
        outputs = arrays.without(kind, held_out)
        metrics[kind] = judgements(outputs, outputs, targets)
    return Judged(terms, score, metrics)


def _variants(kind: str, model: Found, engines: Collection[str]) -> tuple[str, ...]:
    """Return what is made of a model: of the cloud's of a pair one variant, of the edge's all that can be; and itself."""
    prefix = "" if kind == REFERENCE else f"{TEACHER}-"
    made = tuple(one.name for one in model.made)
    itself = (prefix + variants.SAVED_MODEL,) if model.kept and set(engines) & set(ENGINES[Format.SAVEDMODEL]) else ()
    if kind == TEACHER:
        return made or (f"{prefix}onnx-{variants.FLOAT32}", *itself)
    if model.convertible:
        return (*variants.VARIANTS, *itself)
    onnx = f"onnx-{variants.FLOAT32}"
    return (
        (*made, variants.sibling(onnx, variants.FLOAT16), variants.sibling(onnx, variants.INT8)) if onnx in made else made
    )


def _placement(name: str, *, alone: bool) -> Placement:
    usual = variants.placement(name, {})
    return Placement.EDGE if usual is Placement.BOTH and not alone else usual


def _class_output(found: Found, labels: tuple[str, ...], reference: Tensors) -> str:
    """Return the output that holds a score for each class; "" when none looks like it."""
    scores = {spec.name: _scores(reference[spec.name]) for spec in found.outputs if spec.dtype.kind == "f"}
    if not labels:
        return next((name for name, count in scores.items() if count > 1), "")
    fitting = [name for name, count in scores.items() if count == len(labels)]
    if not fitting:
        sizes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in found.outputs)
        raise InputError(
            f"{len(labels)} labels fit no output; the last size must be {len(labels)}; the outputs are {sizes}"
        )
    return fitting[0]


def _scores(array: Array) -> int:
    """Return how many scores a row of answers has; 0 when a row is no vector."""
    return array.shape[-1] if array.ndim > 1 and array[0].size == array.shape[-1] else 0


def _check_targets(targets: Array | None, scores: Array | None) -> None:
    if targets is None or scores is None or targets.dtype.kind not in "iu":
        return
    classes = scores.shape[-1]
    if targets.ndim != 1 or targets.min() < 0 or targets.max() >= classes:
        raise InputError(
            f"the targets have shape {list(targets.shape)} and values from {targets.min()} to {targets.max()}; "
            f"class numbers from 0 to {classes - 1}, one a row, are expected"
        )


def _score(wish: Wish, found: Found, reference: Tensors, targets: Array | None, classes: str) -> MetricScore:
    """Choose metric and output: the truth where it is known, else how far a variant is from the model itself."""
    numbers = [spec.name for spec in found.outputs if spec.dtype.kind == "f"] or [found.outputs[0].name]
    metric = wish.metric
    if metric is None and targets is not None:
        metric = scoring.ACCURACY if targets.dtype.kind in "iu" and classes else scoring.SQUARED_ERROR
    if metric is None:
        metric = scoring.AGREEMENT if classes and not found.made_up else scoring.DIFFERENCE
    if metric in (scoring.ACCURACY, scoring.AGREEMENT) and not classes:
        raise InputError(
            f"the metric {metric} needs an output with one score a class, and no output has the shape [rows, classes]"
        )
    if metric in (scoring.ACCURACY, scoring.SQUARED_ERROR) and targets is None:
        raise InputError(f"the metric {metric} needs an array `targets` in the examples: --golden FILE.npz")
    output = classes if metric in (scoring.ACCURACY, scoring.AGREEMENT) else numbers[0]
    if metric == scoring.SQUARED_ERROR and targets is not None and targets.size != reference[output].size:
        raise InputError(f"the targets have shape {targets.shape} and the output {output} {reference[output].shape}")
    return MetricScore(metric, output)


def _probabilities(scores: Array) -> bool:
    """Say whether every row sums to one and none is negative."""
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=-1), 1, atol=_ONE))
