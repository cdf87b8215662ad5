"""What a delta makes of its base is the target, bit by bit, whatever the two files hold."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.tensor_files import plain

from toprope_shared.deltas import Region, apply, make, worth_offering
from toprope_shared.digest import sha256

TYPES = ("int8", "int32", "float16", "float32", "int64")
NO_REGIONS: tuple[Region, ...] = ()

seeds = st.integers(0, 2**32 - 1)


def rebuilt(base: bytes, delta: bytes, target: bytes) -> bytes:
    """Return what a device that wants `target` makes of a base and a delta."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").write_bytes(base)
        (folder / "delta").write_bytes(delta)
        apply(folder / "base", folder / "delta", folder / "out", target=sha256(target))
        assert sorted(file.name for file in folder.iterdir()) == ["base", "delta", "out"]
        return (folder / "out").read_bytes()


def weights(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return numbers as a trained tensor has them."""
    values = rng.normal(size=shape) * (30 if kind.startswith("int") else 0.1)
    return values.clip(-127, 127).astype(kind)


def tuned(rng: np.random.Generator, values: npt.NDArray[Any], amount: float) -> npt.NDArray[Any]:
    """Return numbers as further training leaves them."""
    moved = values + rng.normal(size=values.shape) * amount * (3 if values.dtype.kind == "i" else 0.01)
    new: npt.NDArray[Any] = moved.clip(-127, 127).round() if values.dtype.kind == "i" else moved
    return new.astype(values.dtype)


@given(seed=seeds, sizes=st.lists(st.tuples(st.sampled_from(TYPES), st.integers(1, 3000)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_random_tensors_come_back_bit_by_bit(seed: int, sizes: list[tuple[str, int]]) -> None:
    rng = np.random.default_rng(seed)
    old = {f"t{number}": weights(rng, kind, (size,)) for number, (kind, size) in enumerate(sizes)}
    new = {name: tuned(rng, values, rng.choice([0, 0.01, 1])) for name, values in old.items()}
    (base, before), (target, after) = plain(old), plain(new)
    assert rebuilt(base, make(base, target, before, after, level=3), target) == target


@given(seed=seeds, kind=st.sampled_from(TYPES), size=st.integers(1, 500))
@settings(deadline=None, max_examples=40)
def test_any_bit_patterns_come_back_not_a_number_too(seed: int, kind: str, size: int) -> None:
    rng = np.random.default_rng(seed)
    width = np.dtype(kind).itemsize
    old, new = ({"t": np.frombuffer(rng.bytes(size * width), kind)} for _ in range(2))
    (base, before), (target, after) = plain(old), plain(new)
    assert rebuilt(base, make(base, target, before, after, level=3), target) == target


@given(seed=seeds, before=st.binary(max_size=70), between=st.binary(max_size=9))
@settings(deadline=None, max_examples=30)
def test_tensors_that_moved_within_the_file_are_still_subtracted(seed: int, before: bytes, between: bytes) -> None:
    rng = np.random.default_rng(seed)
    old = {name: weights(rng, "int8", (40, 50)) for name in ("a", "b", "c")}
    new = {name: tuned(rng, values, 0.1) for name, values in old.items()}
    (base, was), (target, now) = plain(old), plain(new, before=before, between=between)
    delta = make(base, target, was, now, level=3)
    assert rebuilt(base, delta, target) == target
    assert worth_offering(len(delta), len(target))


@given(seed=seeds, rows=st.integers(1, 40), columns=st.integers(1, 40), axis=st.sampled_from([0, 1, None]))
@settings(deadline=None, max_examples=30)
def test_int8_whose_scales_changed_comes_back(seed: int, rows: int, columns: int, axis: int | None) -> None:
    rng = np.random.default_rng(seed)
    old = weights(rng, "int8", (rows, columns))
    factors = rng.uniform(0.5, 1.5, {0: (rows, 1), 1: (1, columns), None: (1, 1)}[axis])
    new = (old * factors).round().clip(-128, 127).astype(np.int8)
    (base, before), (target, after) = plain({"t": old}), plain({"t": new})
    assert rebuilt(base, make(base, target, before, after, level=3), target) == target


@given(seed=seeds, kept=st.sets(st.integers(0, 5)), added=st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_tensors_that_were_removed_or_added_come_back(seed: int, kept: set[int], added: int) -> None:
    rng = np.random.default_rng(seed)
    old = {f"t{number}": weights(rng, TYPES[number % 5], (100 * (number // 2 + 1),)) for number in range(6)}
    new = {name: tuned(rng, values, 0.1) for number, (name, values) in enumerate(old.items()) if number in kept}
    new |= {f"new{number}": weights(rng, "float32", (77,)) for number in range(added)}
    (base, before), (target, after) = plain(old), plain(new)
    assert rebuilt(base, make(base, target, before, after, level=3), target) == target


@given(
    base=st.binary(max_size=300), target=st.binary(max_size=300), regions=st.lists(st.tuples(*[st.integers(0, 300)] * 3))
)
@settings(deadline=None, max_examples=60)
def test_any_bytes_with_any_regions_come_back(base: bytes, target: bytes, regions: list[tuple[int, int, int]]) -> None:
    found = [Region("", start, length, (1, 2, 4, 8)[width % 4], (length,)) for start, length, width in regions]
    assert rebuilt(base, make(base, target, found, found, level=3), target) == target


@pytest.mark.parametrize(("base", "target"), [(b"", b""), (b"", b"x"), (b"x", b""), (b"x", b"x"), (b"x", b"y")])
def test_files_of_no_byte_or_one_come_back(base: bytes, target: bytes) -> None:
    assert rebuilt(base, make(base, target), target) == target


def test_equal_files_make_a_delta_of_a_header_and_a_row() -> None:
    data = np.random.default_rng(1).bytes(300_000)
    delta = make(data, data)
    assert rebuilt(data, delta, data) == data
    assert len(delta) < 50


def test_files_that_have_nothing_in_common_are_not_worth_a_delta() -> None:
    rng = np.random.default_rng(1)
    base, target = rng.bytes(50_000), rng.bytes(60_000)
    delta = make(base, target)
    assert rebuilt(base, delta, target) == target
    assert len(delta) < len(target) + 200
    assert not worth_offering(len(delta), len(target))


def test_tensors_longer_than_a_block_come_back() -> None:
    rng = np.random.default_rng(2)
    old = {
        "a": weights(rng, "int8", (700, 700)),
        "b": weights(rng, "float32", (300, 700)),
        "c": weights(rng, "int8", (1, 3)),
    }
    new = {name: tuned(rng, values, 0.1) for name, values in old.items()}
    new["a"] = (new["a"] * rng.uniform(0.8, 1, (700, 1))).astype(np.int8)
    (base, before), (target, after) = plain(old), plain(new, before=b"a longer head")
    assert rebuilt(base, make(base, target, before, after, level=3), target) == target


def test_a_tensor_is_subtracted_from_the_nearest_one_whatever_the_names_say() -> None:
    rng = np.random.default_rng(3)
    first, second = weights(rng, "int8", (90, 90)), weights(rng, "int8", (90, 90))
    base, before = plain({"v1": first, "v2": second})
    inserted = weights(rng, "int8", (90, 90))
    target, after = plain({"v1": inserted, "v2": tuned(rng, first, 0.1), "v3": tuned(rng, second, 0.1)})
    delta = make(base, target, before, after)
    assert rebuilt(base, delta, target) == target
    assert len(delta) < 1.4 * inserted.nbytes


def test_a_changed_scale_costs_little() -> None:
    rng = np.random.default_rng(4)
    old = weights(rng, "int8", (64, 500))
    new = (old * rng.uniform(0.9, 1, (64, 1))).round().astype(np.int8)
    (base, before), (target, after) = plain({"t": old}), plain({"t": new})
    assert len(make(base, target, before, after)) < 0.03 * len(target)


def test_the_same_files_make_the_same_delta() -> None:
    rng = np.random.default_rng(5)
    old = {name: weights(rng, "float16", (30, 30)) for name in "abcd"}
    (base, before), (target, after) = plain(old), plain({name: tuned(rng, one, 0.1) for name, one in old.items()})
    assert make(base, target, before, after) == make(base, target, before, after)


@pytest.mark.parametrize(("delta", "target", "worth"), [(59, 100, True), (60, 100, False), (0, 0, False), (1, 1, False)])
def test_a_delta_is_offered_under_60_percent_of_the_file(delta: int, target: int, worth: bool) -> None:
    assert worth_offering(delta, target) is worth
