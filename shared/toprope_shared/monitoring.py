"""What a release expects of its inputs and answers, and how far live ones are from it: bins, shares, PSI. Pure.

The manifest carries the reference: for a few features of each input the edges of about ten bins that held equal shares of the
holdout, and the shares of the predicted classes there. A device counts into the same bins; counts are all that leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, cast

import msgspec
import numpy as np

from toprope_shared.tensors import Array, Tensors, TensorSpec

BINS = 10
MAX_ELEMENTS = 16  # of a row that is watched element by element; a longer one by its mean and spread
MAX_CLASSES = 1000
MEAN, SPREAD = "mean", "spread"
# Source: Siddiqi 2006, "Credit Risk Scorecards": above 0.25 a shift is significant.
SIGNIFICANT = 0.25
# What is added to each bin, so that an empty one has a logarithm. Source: Krichevsky and Trofimov 1981.
SMOOTHING = 0.5
_Z95 = 1.6449

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Feature(msgspec.Struct, frozen=True):
    """One number of each row of an input, and how it was distributed.

    Attributes:
        input: its name.
        of: the element's place in the flattened row, or `mean` or `spread` (standard deviation) of all elements.
        edges: inner edges of the bins, growing; a value on an edge belongs to the bin above it, NaN to the last.
        shares: of the rows, one more than edges.
    """

    input: str
    of: Annotated[str, msgspec.Meta(pattern=r"^(mean|spread|[0-9]{1,2})\Z")]
    edges: Annotated[tuple[float, ...], msgspec.Meta(max_length=BINS + 1)]
    shares: Annotated[tuple[Share, ...], msgspec.Meta(max_length=BINS + 2)]

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.edges) + 1:
            raise ValueError(
                f"{len(self.edges)} edges make {len(self.edges) + 1} bins, and there are {len(self.shares)} shares"
            )
        if not all(low < high for low, high in pairwise(self.edges)):
            raise ValueError(f"the edges of {self.input} {self.of} do not grow")


class Classes(msgspec.Struct, frozen=True):
    """The shares of the predicted classes; `output` holds one score a class, classes last."""

    output: str
    shares: Annotated[tuple[Share, ...], msgspec.Meta(min_length=1, max_length=MAX_CLASSES)]


class Monitoring(msgspec.Struct, frozen=True):
    """The reference that live inputs and answers are held against.

    Attributes:
        rows: that it was made of.
        features: none where `epsilon` is set: what is private is not counted.
        classes: None where the answers are no classes.
        epsilon: each predicted class is told by randomised response with this parameter; None tells it as it is. See
            `toprope_shared.randomised`.
    """

    rows: Annotated[int, msgspec.Meta(ge=1)]
    features: tuple[Feature, ...] = ()
    classes: Classes | None = None
    epsilon: Annotated[float, msgspec.Meta(gt=0, le=20)] | None = None

    def __post_init__(self) -> None:
        if self.epsilon is not None and self.features:
            raise ValueError("a release that asks for private telemetry must not have its inputs counted")


def watchable(spec: TensorSpec) -> tuple[str, ...]:
    """Return which features of an input are watched; none of what is no number."""
    if spec.dtype.kind not in "fiub":
        return ()
    rest = spec.shape[1:]
    if spec.shape and -1 not in rest and 1 <= math.prod(rest) <= MAX_ELEMENTS:
        return tuple(map(str, range(math.prod(rest))))
    return MEAN, SPREAD


def rows_of(array: Array, *, batched: bool) -> Array:
    """Return float64 [rows, elements]; what is not batched is one row."""
    return array.reshape(len(array) if batched else 1, -1).astype(np.float64)


def values_of(rows: Array, of: str) -> Array:
    """Return float64 [rows], one feature of each row of `rows_of`."""
    if of == MEAN:
        return cast("Array", rows.mean(axis=1))
    if of == SPREAD:
        return cast("Array", rows.std(axis=1))
    return rows[:, int(of)]


def classes_of(scores: Array) -> Array:
    """Return int64 [rows], the place of each row's highest score."""
    return cast("Array", scores.reshape(-1, scores.shape[-1]).argmax(axis=-1))


def count(values: Array, edges: Sequence[float]) -> Array:
    """Return int64 [bins], how many values each bin holds."""
    return np.bincount(np.searchsorted(np.asarray(edges), values, side="right"), minlength=len(edges) + 1)


def describe(
    specs: Sequence[TensorSpec], inputs: Tensors, scores: Array | None, output: str | None, *, epsilon: float | None = None
) -> Monitoring | None:
    """Return the reference for rows of data; None where nothing can be watched.

    Args:
        specs: of the inputs.
        inputs: by name, rows first.
        scores: the answers, rows first and classes last; None where they are no classes. More than `MAX_CLASSES` are not
            described.
        output: the name of the answers.
        epsilon: see `Monitoring`; with it no input is described.
    """
    features = []
    for spec in specs if epsilon is None else ():
        rows = rows_of(inputs[spec.name], batched=True) if watchable(spec) else None
        if rows is not None and np.isfinite(rows).all():
            features += [_feature(spec.name, of, values_of(rows, of)) for of in watchable(spec)]
    classes = None
    if scores is not None and output is not None and scores.shape[-1] <= MAX_CLASSES:
        found = np.bincount(classes_of(scores), minlength=scores.shape[-1])
        classes = Classes(output, tuple(np.round(found / found.sum(), 6).tolist()))
    rows_seen = max((len(array) for array in inputs.values()), default=0)
    return Monitoring(rows_seen, tuple(features), classes, epsilon) if rows_seen and (features or classes) else None


def _feature(name: str, of: str, values: Array) -> Feature:
    edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
    if edges[-1] >= values.max():  # many rows have the largest value: what is larger still is a bin of its own
        edges = np.append(edges, np.nextafter(edges[-1].astype(np.float32), np.float32(np.inf)).astype(np.float64))
    return Feature(name, of, tuple(edges.tolist()), tuple(np.round(count(values, edges) / len(values), 6).tolist()))


def psi(counts: Array, shares: Array, rows: int) -> float:
    """Return the population stability index of counts against a reference: 0 is the same, above `SIGNIFICANT` a shift.

    Source: Siddiqi 2006; sum over the bins of (a - e) ln(a / e), with `SMOOTHING` added to each bin on both sides.

    Args:
        counts: int [bins], live rows.
        shares: float [bins], of the reference.
        rows: of the reference.
    """
    bins = len(counts)
    actual = (counts + SMOOTHING) / (counts.sum() + SMOOTHING * bins)
    wanted = (shares * rows + SMOOTHING) / (rows + SMOOTHING * bins)
    return float(((actual - wanted) * np.log(actual / wanted)).sum())


def chance_psi(bins: int, live: int, rows: int) -> float:
    """Return the index that chance alone passes once in twenty times, with nothing shifted.

    Source: Yurdakul and Naranjo 2020, "Statistical properties of the population stability index": it is (1/n + 1/m) times a
    chi-square of bins - 1 degrees of freedom, whose quantile is Wilson and Hilferty's (1931).
    """
    if live == 0 or bins < 2:
        return math.inf
    degrees = bins - 1
    spread = 2.0 / (9.0 * degrees)
    return float((1 / live + 1 / rows) * degrees * (1 - spread + _Z95 * math.sqrt(spread)) ** 3)
