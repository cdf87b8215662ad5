"""Writes floats as JSON the way TensorFlow Serving does, digit for digit. Pure functions.

Source: `WriteDecimal` of TensorFlow Serving's json_tensor.cc: `%g` with 6 digits where these read back as the same value of the
tensor's own width, else with `max_digits10`; and `.0` behind what would look whole.
"""

from __future__ import annotations

import numpy as np

from toprope_shared.serving.values import encode_numbers, nest
from toprope_shared.tensors import Array

# These digits cost ten times the shortest ones, and mean nothing to who reads them: not for large answers.
MOST_EXACT = 1024
_NORMAL = {kind: float(np.finfo(kind).tiny) for kind in (np.float32, np.float64)}
_ODD = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def encode_percent_g(array: Array) -> bytes:
    """Return an array of booleans, integers or floats as JSON text, nested like its shape; see `values.encode_numbers`."""
    if array.dtype.kind != "f" or not 0 < array.size <= MOST_EXACT:
        return encode_numbers(array)
    width = np.float64 if array.itemsize == 8 else np.float32
    values = array.ravel().tolist()
    form = "%.17g " if width is np.float64 else "%.9g "
    long = (form * len(values) % tuple(values)).split()
    tokens = [_token(value, text, width) for value, text in zip(values, long, strict=True)]
    return nest([token.encode() for token in tokens], array.shape)


def _token(value: float, text: str, width: type[np.float32 | np.float64]) -> str:
    """Return a float's text, given that with all its digits."""
    # Six digits can only do where the seventh is 0 or 9, or there is none; but subnormal numbers are wide apart.
    if text.replace(".", "").lstrip("-0")[6:7] in "09" or abs(value) < _NORMAL[width]:
        short = f"{value:g}"
        if width(short) == value:
            text = short
    if "." in text or "e" in text:
        return text
    return _ODD.get(text) or text + ".0"
