"""Floats as TensorFlow Serving writes them, held against a slow definition in terms of C's printf."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toprope_shared.serving.tfnumbers import MOST_SHAPED, encode_percent_g
from toprope_shared.tensors import Array

WIDTHS = [(np.float32, 9), (np.float64, 16)]


def slowly(value: Any, last: int) -> str:
    """Return `%g` with 6 digits where these read back, else the fewest digits that do.

    Args:
        value: a finite numpy float that is not subnormal.
        last: power of ten from which on more than 6 digits have an exponent.
    """
    kind = type(value)
    text = f"{value:.6g}"
    if kind(text) != value:
        mantissa, exponent = np.format_float_scientific(value, unique=True, trim="-").split("e")
        sign, digits, power = mantissa[: mantissa.startswith("-")], mantissa.lstrip("-").replace(".", ""), int(exponent)
        digits = digits.rstrip("0")
        if power < -4 or power >= last:
            text = f"{sign}{digits[0]}.{digits[1:]}e{power:+03d}".replace(".e", "e")
        elif power < 0:
            text = f"{sign}0.{'0' * (-power - 1)}{digits}"
        else:
            digits = digits.ljust(power + 1, "0")
            text = f"{sign}{digits[: power + 1]}.{digits[power + 1 :]}".rstrip(".")
    return text if "." in text or "e" in text else text + ".0"


@pytest.mark.parametrize(("kind", "last"), WIDTHS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_number_has_the_form_of_percent_g(kind: type, last: int, data: st.DataObject) -> None:
    width: Literal[32, 64] = 32 if kind is np.float32 else 64
    free = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False, width=width)
    near = st.floats(-9, 18).map(lambda power: float(kind(10**power)))
    whole = st.integers(-(10**12), 10**12).map(lambda number: float(kind(number)))
    values = data.draw(st.lists(free | near | whole, min_size=1, max_size=8))
    array: Array = np.array(values, dtype=kind)
    tokens = encode_percent_g(array)[1:-1].decode().split(",")
    assert tokens == [slowly(value, last) for value in array]
    assert np.array_equal(np.array([float(token) for token in tokens], dtype=kind), array)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1.0"),
        (-0.0, "-0.0"),
        (0.2, "0.2"),
        (9000000, "9e+06"),
        (0.00003, "3e-05"),
        (0.0001, "0.0001"),
        (999999, "999999.0"),
        (1000000, "1e+06"),
        (1234567, "1234567.0"),
        (10.00001, "10.00001"),
        (1e-7, "1e-07"),
        (3e38, "3e+38"),
    ],
)
def test_the_servers_own_examples(value: float, text: str) -> None:
    assert encode_percent_g(np.array([value], np.float32)) == f"[{text}]".encode()
    assert encode_percent_g(np.array(value, np.float32)) == text.encode()


def test_nested_arrays_whole_numbers_and_odd_values_keep_their_shape() -> None:
    mixed = np.array([[[1e6, np.nan]], [[-np.inf, 2e-5]]])
    assert encode_percent_g(mixed) == b"[[[1e+06,NaN]],[[-Infinity,2e-05]]]"
    assert encode_percent_g(np.array([[1000000, 2]])) == b"[[1000000,2]]"
    assert encode_percent_g(np.array([True])) == b"[true]"
    assert encode_percent_g(np.zeros((2, 0), np.float32)) == b"[[],[]]"
    assert encode_percent_g(np.arange(6, dtype=np.float32).reshape(2, 3).T) == b"[[0.0,3.0],[1.0,4.0],[2.0,5.0]]"


def test_a_large_answer_keeps_its_values_whatever_their_form() -> None:
    array = np.linspace(0, 1e-3, MOST_SHAPED + 1, dtype=np.float32)
    assert np.array_equal(np.array(json.loads(encode_percent_g(array)), np.float32), array)
