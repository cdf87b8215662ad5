"""Floats as TensorFlow Serving writes them, held against a slow definition in terms of C's printf."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toprope_shared.serving.tfnumbers import MOST_EXACT, encode_percent_g
from toprope_shared.tensors import Array

WIDTHS = [(np.float32, 9), (np.float64, 17)]


def slowly(value: Any, most: int) -> str:
    """Return `%g` with 6 digits where these read back, else with the most that the width can have."""
    text = f"{value:.6g}"
    if type(value)(text) != value:
        text = f"{value:.{most}g}"
    return text if "." in text or "e" in text else text + ".0"


@pytest.mark.parametrize(("kind", "most"), WIDTHS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_number_has_the_digits_of_percent_g(kind: type, most: int, data: st.DataObject) -> None:
    width: Literal[32, 64] = 32 if kind is np.float32 else 64
    free = st.floats(allow_nan=False, allow_infinity=False, width=width)
    near = st.floats(-9, 18).map(lambda power: float(kind(10**power)))
    whole = st.integers(-(10**12), 10**12).map(lambda number: float(kind(number)))
    short = st.decimals(-1000, 1000, places=4).map(lambda number: float(kind(number)))
    values = data.draw(st.lists(free | near | whole | short, min_size=1, max_size=8))
    array: Array = np.array(values, dtype=kind)
    tokens = encode_percent_g(array)[1:-1].decode().split(",")
    assert tokens == [slowly(value, most) for value in array]
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
        (10.00001, "10.0000095"),
        (1 / 3, "0.333333343"),
        (1e-7, "1e-07"),
        (3e38, "3e+38"),
        (3.4028234663852886e38, "3.40282347e+38"),
        (1e-45, "1.4013e-45"),
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
    array = np.linspace(0, 1e-3, MOST_EXACT + 1, dtype=np.float32)
    assert np.array_equal(np.array(json.loads(encode_percent_g(array)), np.float32), array)
