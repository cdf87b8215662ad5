"""The best classes of an output as text, the way Triton's classification extension writes them. Pure functions.

Source: Triton's classification extension and its classification.cc: an element is `<value>:<index>[:<label>]`, the value as
C++'s `std::to_string` writes it (six decimals for a float), the best first; among equals the first in the output stands first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from toprope_shared.errors import RequestError
from toprope_shared.serving.values import bytes_array
from toprope_shared.tensors import Array, datatype_of

_WITHOUT_ORDER = ("BF16", "BOOL", "BYTES", "FP16")


def best_classes(name: str, array: Array, count: int, labels: Sequence[str], *, batched: bool) -> Array:
    """Return the best classes of an output.

    Args:
        name: of the output, for errors.
        array: scores; with a batch its first axis is the rows.
        count: how many classes are asked for; a row with fewer gives what it has.
        labels: of the classes by index; used where there is one for every element of a row.
        batched: whether the first axis is a batch.

    Returns:
        a BYTES array of shape [batch, classes], without a batch [classes].

    Raises:
        RequestError: the output's datatype has no order in the protocol.
    """
    if (datatype := datatype_of(array)) in _WITHOUT_ORDER:
        raise RequestError(f"class result not available for output {name!r} due to unsupported type {datatype!r}")
    batch = array.shape[:1] if batched else ()
    width = math.prod(array.shape[len(batch) :])
    rows = array.reshape(math.prod(batch), width)
    taken = min(count, width)
    named = labels if len(labels) == width else ()
    falling = -rows if rows.dtype.kind == "f" else ~rows  # of whole numbers ~ turns the order and can't overflow
    order = np.argsort(falling, axis=1, kind="stable")[:, :taken]
    flat = bytes_array([_text(row[index], index, named) for row, best in zip(rows, order, strict=True) for index in best])
    return flat.reshape(*batch, taken)


def _text(value: np.generic, index: int, labels: Sequence[str]) -> bytes:
    number = f"{value:f}" if value.dtype.kind == "f" else str(value)
    return f"{number}:{index}{':' + labels[index] if labels else ''}".encode()
