"""The transfer's values: what is encoded comes back, what is altered is refused."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprope_shared.chunks import MAX_BITMAP_BITS, MAX_WINDOW, ChunkManifest, Data, Need, from_bitmap, to_bitmap
from toprope_shared.errors import InputError


@given(st.binary(max_size=5000), st.integers(1, 700))
def test_a_chunk_manifest_comes_back_and_holds_its_chunks(data: bytes, size: int) -> None:
    table = ChunkManifest.parse(ChunkManifest.build(io.BytesIO(data), size).encode())
    assert (table.length, table.count) == (len(data), -(-len(data) // size))
    for index in range(table.count):
        chunk = data[index * size : (index + 1) * size]
        assert table.size(index) == len(chunk)
        assert table.holds(index, chunk)
        assert not table.holds(index, chunk + b"x")


@given(st.sets(st.integers(0, 3000), max_size=200))
def test_a_bitmap_comes_back(bits: set[int]) -> None:
    assert list(from_bitmap(to_bitmap(sorted(bits)))) == sorted(bits)


@given(st.sets(st.integers(0, 2000), min_size=1, max_size=MAX_WINDOW), st.integers(0, 2**64 - 1))
def test_a_need_comes_back(indexes: set[int], session: int) -> None:
    need = Need(session, b"d" * 32, 1000, tuple(sorted(indexes)), nonce=3)
    assert Need.parse(need.encode()) == need


@given(st.sets(st.integers(0, MAX_BITMAP_BITS - 1), min_size=1, max_size=300), st.booleans())
def test_an_answer_with_all_that_is_missing_comes_back(indexes: set[int], listens: bool) -> None:
    need = Need(5, b"d" * 32, 1000, tuple(sorted(indexes)), max_rate=7, listens=listens, whole=True)
    assert Need.parse(need.encode()) == need


@given(st.binary(min_size=1, max_size=300), st.integers(0, 400), st.integers(0, 7))
def test_a_data_message_with_a_flipped_bit_is_not_taken_for_the_same(chunk: bytes, place: int, bit: int) -> None:
    message = bytearray(Data(1, b"a" * 8, 7, chunk).encode())
    message[place % len(message)] ^= 1 << bit
    try:
        got = Data.parse(bytes(message))
    except InputError:
        return
    assert got != Data(1, b"a" * 8, 7, chunk) or message[3] != 0  # the one spare byte carries nothing


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused_and_nothing_else_is_raised(message: bytes) -> None:
    for kind in (Data, Need, ChunkManifest):
        try:
            kind.parse(message)
        except InputError:
            continue


def test_a_need_for_more_than_a_window_is_refused() -> None:
    with pytest.raises(InputError, match="window"):
        Need.parse(Need(1, b"d" * 32, 1000, tuple(range(MAX_WINDOW + 1))).encode())
