"""Writes floats as JSON in the form that TensorFlow Serving gives them. Pure functions.

The digits are the fewest that read back as the same value of the tensor's own width; that server writes one more where 8 of
9 (or 16 of 17) would do. Where an exponent stands, and that there is a point or an exponent, is as there. Most arrays hold
nothing that must change, so what decides is a look for a few bytes in the text that orjson wrote.

Source: `WriteDecimal` of TensorFlow Serving's json_tensor.cc: `%g` with 6 digits where these read back, else with
`max_digits10`; and C's `%g`: an exponent below 1e-4, and from 10 to the power of the number of digits on.
"""

from __future__ import annotations

import re

from toprope_shared.serving.values import encode_numbers
from toprope_shared.tensors import Array

# A change costs ten times what writing the number did, and means nothing to who reads it: not for large answers.
MOST_SHAPED = 1024
_SHORT = 6
# By bytes of a float: the power of ten from which on it has an exponent where 6 digits do not do.
_LONG = {4: 9, 8: 16}
_SMALL = re.compile(rb"0\.0000(?<!\d0\.0000)(0*)([1-9])(\d*)")
_EXPONENT = re.compile(rb"e-(\d)(?!\d)")
_LARGE = re.compile(rb"(?<![\d.])([1-9]\d{5,}0)\.0(?!\d)")


def encode_percent_g(array: Array) -> bytes:
    """Return an array of booleans, integers or floats as JSON text, nested like its shape; see `values.encode_numbers`."""
    text = encode_numbers(array)
    if (b"0.0" not in text and b"e-" not in text) or array.dtype.kind != "f" or array.size > MOST_SHAPED:
        return text
    if b"0.0000" in text:
        text = _SMALL.sub(_small, text)
    if b"e-" in text:
        text = _EXPONENT.sub(rb"e-0\1", text)
    if b"0.0," in text or b"0.0]" in text or text.endswith(b"0.0"):
        limit = _LONG[max(4, array.itemsize)]
        text = _LARGE.sub(lambda found: _large(found, limit), text)
    return text


def _small(found: re.Match[bytes]) -> bytes:
    zeros, first, rest = found.groups()
    return b"%s%se-%02d" % (first, b"." + rest if rest else b"", len(zeros) + 5)


def _large(found: re.Match[bytes], limit: int) -> bytes:
    whole = found[1]
    digits = whole.rstrip(b"0")
    if len(whole) <= (_SHORT if len(digits) <= _SHORT else limit):
        return found[0]
    return b"%s%se+%02d" % (digits[:1], b"." + digits[1:] if len(digits) > 1 else b"", len(whole) - 1)
