"""Makes up the inputs of one call for a model that comes without examples.

A file says names, datatypes and shapes of its inputs and leaves sizes open; which sizes it takes is found by asking it, with
sizes of 1 first. No disk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from toprope_shared.errors import EngineError, InputError, ProbeError
from toprope_shared.tensors import Array, Tensors, TensorSpec, numbers_of, to_bf16

# Sizes that an open one is tried with: heights and widths of images, windows of audio.
SIZES = (1, 32, 48, 64, 128, 224, 256, 320, 512, 576, 1024, 16, 8, 4, 3, 2)
MAX_TRIES = 100
MAX_ELEMENTS = 1 << 26
SEED = 0
Shapes = Mapping[str, tuple[int, ...]]


def make_call(specs: tuple[TensorSpec, ...], run: Callable[[Tensors], Tensors], given: Shapes) -> dict[str, Array]:
    """Return inputs that the model answers with finite numbers.

    Floats are uniform in 0..1, one-byte integers take all their values, wider ones are 1, so that they may be an index, a
    length or a divisor.

    Args:
        specs: the inputs as the file declares them; -1 is any size.
        run: the model.
        given: by input, the whole shape of the call, where it is known.

    Raises:
        InputError: `given` names no input, or does not fit one.
        ProbeError: the model refused every try, or gave what is not finite.
    """
    _check(specs, given)
    problem = "its inputs are too large to be made up"
    for shapes in itertools.islice(_tries(specs, given), MAX_TRIES):
        if sum(math.prod(shape) for shape in shapes.values()) > MAX_ELEMENTS:
            continue
        rng = np.random.default_rng(SEED)
        call = {spec.name: _values(rng, spec, shapes[spec.name]) for spec in specs}
        try:
            outputs = run(call)
        except EngineError as error:
            problem = str(error)
            continue
        wrong = [name for name, array in outputs.items() if not _is_finite(array)]
        if wrong:
            raise ProbeError(f"its output {wrong[0]!r} is NaN or infinite for made-up inputs; give real ones with --golden")
        return call
    open_ = [f"{spec.name} {list(spec.shape)}" for spec in specs if -1 in spec.shape]
    advice = f"; name the open sizes of {'; '.join(open_)} with --shape, or give inputs with --golden" if open_ else ""
    raise ProbeError(f"it answered no made-up inputs: {problem}{advice}")


def _is_finite(array: Array) -> bool:
    numbers = numbers_of(array)
    return numbers.dtype.kind != "f" or bool(np.isfinite(numbers).all())


def _check(specs: tuple[TensorSpec, ...], given: Shapes) -> None:
    known = {spec.name: spec.shape for spec in specs}
    for name, shape in given.items():
        if name not in known:
            raise InputError(f"--shape names {name!r}; the inputs are {', '.join(known)}")
        fits = len(shape) == len(known[name]) and all(
            want in (-1, size) for want, size in zip(known[name], shape, strict=True)
        )
        if not fits:
            raise InputError(f"--shape {name}={','.join(map(str, shape))} does not fit {list(known[name])}")


def _tries(specs: tuple[TensorSpec, ...], given: Shapes) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield shapes by input: all open sizes 1, then all but the first axis's of another size, then one alone."""
    shapes = {spec.name: list(given.get(spec.name, spec.shape)) for spec in specs}
    places = [(name, axis) for name, shape in shapes.items() for axis, size in enumerate(shape) if size < 0]
    groups = [[place for place in places if place[1] > 0], *([place] for place in places)]
    seen: list[dict[str, tuple[int, ...]]] = []
    for group, size in itertools.product(groups, SIZES):
        chosen = {name: tuple(max(one, 1) if one < 0 else one for one in shape) for name, shape in shapes.items()}
        for name, axis in group:
            chosen[name] = (*chosen[name][:axis], size, *chosen[name][axis + 1 :])
        if chosen not in seen:
            seen.append(chosen)
            yield chosen


def _values(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    dtype = spec.dtype
    if spec.datatype == "BF16":
        return to_bf16(rng.random(shape))
    if dtype.kind == "f":
        return np.asarray(rng.random(shape), dtype)
    if dtype.kind in "iu" and dtype.itemsize == 1:
        limits = np.iinfo(dtype)
        return np.asarray(rng.integers(limits.min, limits.max, shape, endpoint=True), dtype)
    return np.ones(shape, dtype)
