"""What TensorFlow Serving's clients ask, as plain values: the same for our doors and for TensorFlow Serving's own messages.

A case is a model that gives its inputs back (`out_NAME`), what goes in, and whether rows or columns are asked for. Foreign
environments read this too, so it needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
F32 = np.finfo(np.float32)
# Borders between %g and all digits, between fixed and scientific, and what JSON has no number for.
FLOATS = [
    0.0, -0.0, 1.0, -1.5, 0.1, 0.2, 1 / 3, 1e-5, 1e-4, 0.00012, 123456.0, 1234567.0, 999999.5, 9000000.0, 1e16, 1e21, 1e-7,
    16777216.0, 16777217.0, 3.14159274, 2.71828182845904, 5e-324, 1e-45, 1.17549435e-38, 3.4028234e38, 0.30000001192092896,
]  # fmt: skip
ODD = [float("nan"), float("inf"), float("-inf")]
TEXTS = ["", "plain", 'a "quote" \\ and a / slash', "äöü 的", "line\nbreak\ttab", "\x01\x1f"]


@dataclass(frozen=True)
class Case:
    """One predict call.

    Attributes:
        model: its name, and the case's.
        inputs: what goes in, and comes back under `out_NAME`.
        rows: `instances` and `predictions`, or else `inputs` and `outputs`.
    """

    model: str
    inputs: Arrays
    rows: bool


def texts(values: list[Any]) -> NDArray[Any]:
    """Return text as an object array of bytes."""
    array = np.empty(len(values), np.object_)
    array[:] = [value if isinstance(value, bytes) else value.encode() for value in values]
    return array


def cases() -> list[Case]:
    """Return all predict calls, each as rows and as columns where both are possible."""
    integers = {
        f"{sign}int{bits}": np.array([np.iinfo(kind).min, 1, np.iinfo(kind).max], kind)
        for sign, bits in (("", 8), ("", 16), ("", 32), ("", 64), ("u", 8), ("u", 32), ("u", 64))
        for kind in (np.dtype(f"{sign}int{bits}"),)
    }
    both: dict[str, Arrays] = {
        "floats": {"x": np.array([FLOATS + ODD], np.float64).astype(np.float32)},
        "doubles": {"x": np.array([FLOATS + ODD], np.float64)},
        "one_number_a_row": {"x": np.array([1.5, 2.0], np.float32)},
        "matrices": {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4)},
        "integers": integers,
        "truths": {"x": np.array([[True, False]])},
        "texts": {"x": texts(TEXTS)},
        "bytes": {"x_bytes": texts([b"", b"\x00\xff\xfe", b"plain"])},
        "mixed": {
            "a": np.array([[1.0], [2.5]], np.float32),
            "b": np.array([1, 2], np.int64),
            "c_bytes": texts([b"x", b"y"]),
        },
        "one_of_many_names": {"z": np.array([[3.0]], np.float32)},
    }
    made = [
        Case(f"{name}_{'rows' if rows else 'columns'}", inputs, rows)
        for name, inputs in both.items()
        for rows in (True, False)
    ]
    made.append(Case("scalar_columns", {"x": np.array(2.5, np.float32)}, rows=False))
    made.append(Case("nothing_columns", {"x": np.zeros(0, np.float32)}, rows=False))
    return made


SCORES = np.array([[0.1, 0.7, 0.2], [0.9, 0.05, 0.05]], np.float32)
VALUES = np.array([[0.5], [-12.25], [1e10]], np.float32)
LABELS = ("red", "green", "blue")
DTYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES")
