"""Makes the examples that an imported model is measured on, or takes those that its owner gives.

A file says names, datatypes and shapes of its inputs, and rarely what values make sense, or which sizes fit where a size is
free. So made-up examples are tried on the model itself: the sizes and value ranges that it answers with finite numbers are
taken. Needs numpy alone; the model is a function.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from toprope_shared.errors import InputError, RequestError
from toprope_shared.golden import run_all
from toprope_shared.tensors import BF16, Array, Tensors, TensorSpec, check, numbers_of, to_bf16
from toprope_training.rows import MIN_HOLDOUT_ROWS

Run = Callable[[Tensors], dict[str, Array]]
Fresh = Callable[[], Run]
"""Gives the model as new: what keeps state between calls starts anew."""

MIN_ROWS, MAX_ROWS = 8, 24
MANY_ELEMENTS = 30_000  # a model that takes so many numbers in a call is slow: fewer rows
MAX_ELEMENTS = 16_000_000
SEED = 0
# Sizes that a free dimension is tried with, likely ones first: heights and widths of images, windows of audio.
SIZES = (32, 48, 64, 128, 224, 256, 320, 16, 8, 512, 576, 1024, 4, 3, 2, 1)
INTEGERS = (256, 16, 2, 1)
MAX_TRIES = 2000
# A batch may be computed in another order than its rows: what is farther apart is no batch.
SAME_ROWS = 1e-3


class Free(msgspec.Struct, frozen=True):
    """One input's sizes: fixed ones as numbers, free ones under a name; equal names are equal sizes.

    Attributes:
        sizes: an int, or a name that stands for one.
    """

    spec: TensorSpec
    sizes: tuple[int | str, ...]


def free(spec: TensorSpec, names: Sequence[str] = ()) -> Free:
    """Return an input with names for its free sizes: those given, or one of its own for each."""
    given = [*names, *[""] * len(spec.shape)]
    sizes = [size if size >= 0 else given[axis] or f"{spec.name}.{axis}" for axis, size in enumerate(spec.shape)]
    return Free(spec, tuple(sizes))


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs and the model's outputs, rows first.

    Attributes:
        stacked: each row is a call of its own, without the first axis.
        made: made up here and not given by the owner.
        targets: what is true of each row, None where that is not known.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    stacked: bool
    made: bool
    targets: Array | None = None


@dataclass(frozen=True, slots=True)
class _Model:
    """A function in a session's clothes, so that rows are run here as they are everywhere."""

    function: Run

    def run(self, inputs: Tensors) -> dict[str, Array]:
        return self.function(inputs)

    def close(self) -> None:
        return


def given(inputs: Sequence[Free], arrays: Mapping[str, Array], fresh: Fresh) -> Examples:
    """Return the owner's examples with the model's outputs for them.

    Args:
        inputs: the model's.
        arrays: `in.<name>` for each input, rows first; `targets`, and `out.<name>` of another run, where they are known.
        fresh: the model.

    Raises:
        InputError: an input is missing or does not fit, or the given outputs are not the model's.
    """
    found = {name.removeprefix("in."): array for name, array in arrays.items() if name.startswith("in.")}
    names = [one.spec.name for one in inputs]
    unknown = sorted(found.keys() - set(names))
    if unknown:
        raise InputError(f"the examples name in.{unknown[0]}; the model's inputs are {', '.join(names)}")
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"the examples have no array in.{missing[0]}; the model's inputs are {', '.join(names)}, "
            f"the file has {', '.join(arrays) or 'no arrays'}"
        )
    chosen = {one.spec.name: _row_axis(_cast(found[one.spec.name], one.spec), one.spec) for one in inputs}
    rows = {name: len(array) if array.ndim else 0 for name, array in chosen.items()}
    if len(set(rows.values())) != 1 or not min(rows.values()):
        raise InputError(f"the examples need the same number of rows, at least one, in every input; they have {rows}")
    stacked = not all(_fits(one.spec, chosen[one.spec.name]) for one in inputs)
    if stacked:
        for one in inputs:
            _check_row(one.spec, chosen[one.spec.name])
    targets = arrays.get("targets")
    if targets is not None and (not targets.ndim or len(targets) != min(rows.values())):
        raise InputError(f"the examples have {min(rows.values())} rows and {targets.size} targets")
    if targets is not None and len(targets) < MIN_HOLDOUT_ROWS:
        raise InputError(
            f"{len(targets)} examples with targets are too few to judge a model; give {MIN_HOLDOUT_ROWS} or more"
        )
    outputs = _run(fresh(), chosen, stacked=stacked)
    _hold(outputs, {name.removeprefix("out."): array for name, array in arrays.items() if name.startswith("out.")})
    return Examples(chosen, outputs, stacked, made=False, targets=targets)


def make(inputs: Sequence[Free], fresh: Fresh, shapes: Mapping[str, tuple[int, ...]]) -> Examples:
    """Make examples and return them with the model's outputs.

    Args:
        inputs: the model's.
        fresh: the model.
        shapes: by input, the whole shape of one call, where the owner names it.

    Raises:
        InputError: no tried sizes and values gave an answer of finite numbers; the text says which input is free.
    """
    unknown = sorted(shapes.keys() - {one.spec.name for one in inputs})
    if unknown:
        raise InputError(f"--shape names {unknown[0]!r}; the inputs are {', '.join(one.spec.name for one in inputs)}")
    problem = ""
    run = fresh()
    for sizes, top, spread in itertools.islice(_tries(inputs, shapes), MAX_TRIES):
        drawn = _Drawn(inputs, sizes, top, spread)
        if drawn.elements() > MAX_ELEMENTS:
            continue
        try:
            outputs = run(drawn.draw())
        except Exception as error:  # what a model raises for sizes that do not fit depends on its engine
            problem = problem or " ".join(str(error).split())[:300]
            continue
        broken = [name for name, array in outputs.items() if not _is_finite(numbers_of(array))]
        if broken:
            problem = f"its output {broken[0]!r} is NaN or infinite"
            continue
        return _rows(drawn, fresh)
    raise InputError(_no_answer(inputs, problem))


def _tries(inputs: Sequence[Free], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[dict[str, int], int, bool]]:
    """Yield sizes for all free names, the top of integers, and whether floats are uniform in 0..1; likely ones first."""
    wide = any(one.spec.dtype.kind in "iu" and one.spec.dtype.itemsize > 1 for one in inputs)
    values = [(top, spread) for top in (INTEGERS if wide else INTEGERS[:1]) for spread in (False, True)]
    fixed, names = _names(inputs, shapes)
    for sizes in _few(names):
        yield from ((fixed | sizes, *value) for value in values)
    if len(names) > 1:
        for combination in itertools.product(SIZES, repeat=len(names)):
            yield fixed | dict(zip(names, combination, strict=True)), *values[0]


def _names(inputs: Sequence[Free], shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], list[str]]:
    """Return the free sizes that are known, one for what may be a batch among them, and the names of the others."""
    known: dict[str, int] = {}
    for one in inputs:
        wanted = shapes.get(one.spec.name)
        if wanted is not None:
            known |= _pin(one, wanted)
    first = {one.sizes[0] for one in inputs if one.sizes and isinstance(one.sizes[0], str)} - known.keys()
    known |= {str(name): 1 for name in first}
    free_ = dict.fromkeys(size for one in inputs for size in one.sizes if isinstance(size, str) and size not in known)
    return known, list(free_)


def _few(names: Sequence[str]) -> Iterator[dict[str, int]]:
    """Yield the same size for all, then one after the other while the rest is 1."""
    for size in SIZES:
        yield dict.fromkeys(names, size)
        if not names:
            return
    if len(names) > 1:
        for name in names:
            for size in SIZES:
                yield dict.fromkeys(names, 1) | {name: size}


def _pin(one: Free, wanted: tuple[int, ...]) -> dict[str, int]:
    if len(wanted) != len(one.sizes) or any(
        size != want for size, want in zip(one.sizes, wanted, strict=True) if isinstance(size, int)
    ):
        raise InputError(f"--shape {one.spec.name}={','.join(map(str, wanted))} does not fit {list(one.spec.shape)}")
    return {size: want for size, want in zip(one.sizes, wanted, strict=True) if isinstance(size, str)}


@dataclass(frozen=True, slots=True)
class _Drawn:
    """How random inputs are drawn: sizes by name, the top of integers, and whether floats are uniform in 0..1."""

    inputs: Sequence[Free]
    sizes: Mapping[str, int]
    top: int
    spread: bool

    def elements(self) -> int:
        """Return how many numbers one call holds."""
        sizes = ([size if isinstance(size, int) else self.sizes[size] for size in one.sizes] for one in self.inputs)
        return sum(math.prod(shape) for shape in sizes)

    def draw(self, rows: int | None = None) -> dict[str, Array]:
        """Return the inputs of one call, or of `rows` calls along a first axis."""
        rng = np.random.default_rng(SEED)
        found = {}
        for one in self.inputs:
            shape = tuple(size if isinstance(size, int) else self.sizes[size] for size in one.sizes)
            shape = shape if rows is None else (rows, *shape)
            found[one.spec.name] = _random(rng, one.spec.dtype, shape, self.top, self.spread)
        return found

    def may_batch(self) -> bool:
        """Say whether the first size of every input, and no other, is free: then rows may go in one call."""
        return all(
            one.spec.shape[:1] == (-1,) and self.sizes[str(one.sizes[0])] == 1 and -1 not in one.spec.shape[1:]
            for one in self.inputs
        )


def _is_finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _random(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...], top: int, spread: bool) -> Array:
    if dtype.kind == "f" or dtype == BF16:
        values = rng.random(shape) if spread else rng.standard_normal(shape)
        return to_bf16(values) if dtype == BF16 else np.asarray(values, dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.itemsize == 1:  # quantized values: all of them mean something
        limits = np.iinfo(dtype)
        return np.asarray(rng.integers(limits.min, limits.max, shape, endpoint=True), dtype)
    return np.asarray(rng.integers(0, top, shape), dtype)


def _rows(drawn: _Drawn, fresh: Fresh) -> Examples:
    """Return many rows of the sizes that worked: in batches where the model takes them, else one call a row."""
    stack = drawn.draw(MAX_ROWS if drawn.elements() < MANY_ELEMENTS else MIN_ROWS)
    apart = _run(fresh(), stack, stacked=True)
    if drawn.may_batch():
        batch = {name: array[:, 0] for name, array in stack.items()}
        together = _batched(fresh(), batch)
        wanted = {name: array.reshape(array.shape[:1] + array.shape[2:]) for name, array in apart.items() if array.ndim > 1}
        if together is not None and _same(together, wanted, len(apart)):
            return Examples(batch, wanted, stacked=False, made=True)
    return Examples(stack, apart, stacked=True, made=True)


def _batched(run: Run, batch: Tensors) -> dict[str, Array] | None:
    try:
        return run(batch)
    except Exception:  # it said that its first size is free, and takes one row only
        return None


def _same(together: Tensors, apart: Tensors, outputs: int) -> bool:
    return len(apart) == outputs and all(
        together[name].shape == array.shape
        and np.allclose(numbers_of(together[name]), numbers_of(array), rtol=SAME_ROWS, atol=SAME_ROWS)
        for name, array in apart.items()
    )


def _run(run: Run, rows: Tensors, *, stacked: bool) -> dict[str, Array]:
    try:
        return run_all(_Model(run), rows, stacked=stacked)
    except ValueError as error:
        raise InputError(
            f"the model's outputs differ in shape from call to call, which can't be compared: {error}"
        ) from error
    except Exception as error:  # as in `make`
        raise InputError(f"the model failed on the examples: {' '.join(str(error).split())[:300]}") from error


def _cast(array: Array, spec: TensorSpec) -> Array:
    if array.dtype == spec.dtype:
        return array
    if spec.datatype == "BF16" and array.dtype.kind in "fiu":
        return to_bf16(array)
    whole = array.dtype.kind in "iub" and spec.dtype.kind in "iub"
    if whole and not np.array_equal(array, array.astype(spec.dtype)):
        raise InputError(f"the examples give in.{spec.name} values that {spec.dtype} can't hold, e.g. {array.max()}")
    if not whole and not np.can_cast(array.dtype, spec.dtype, casting="same_kind"):
        raise InputError(f"the examples give in.{spec.name} as {array.dtype}; the model takes {spec.dtype}")
    return array.astype(spec.dtype)


def _row_axis(array: Array, spec: TensorSpec) -> Array:
    """Return rows of a model that takes one at a time, [rows, size, ...], as calls of one row, [rows, 1, size, ...]."""
    if spec.shape[:1] == (1,) and array.ndim == len(spec.shape) and array.shape[1:] == spec.shape[1:]:
        return array[:, np.newaxis]
    return array


def _fits(spec: TensorSpec, array: Array) -> bool:
    """Say whether an array is a batch for an input whose first size is free."""
    if spec.shape[:1] != (-1,):
        return False
    try:
        check(spec, array)
    except RequestError:
        return False
    return True


def _check_row(spec: TensorSpec, array: Array) -> None:
    try:
        check(spec, array[0])
    except RequestError as error:
        raise InputError(f"the examples do not fit: {error}; rows come first in each array") from error


def _hold(got: Tensors, expected: Tensors) -> None:
    for name, array in expected.items():
        if name not in got:
            raise InputError(f"the examples name out.{name}; the model's outputs are {', '.join(got)}")
        if array.shape != got[name].shape or not np.allclose(got[name], array, rtol=SAME_ROWS, atol=SAME_ROWS):
            raise InputError(
                f"the model does not give the outputs out.{name} of the examples file; is the file of another version of it?"
            )


def _no_answer(inputs: Sequence[Free], problem: str) -> str:
    loose = [
        f"{one.spec.name} {list(one.spec.shape)}" for one in inputs if any(isinstance(size, str) for size in one.sizes)
    ]
    sizes = f"the free sizes (-1) of {'; '.join(loose)} are not known and none of the tried ones worked" if loose else ""
    advice = "name the sizes with --shape NAME=1,3,48,320 or give examples with --golden FILE.npz"
    return f"the model answered none of the examples made up here: {problem}; {sizes}{'; ' if sizes else ''}{advice}"
