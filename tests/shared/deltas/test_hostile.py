"""A delta that is damaged, cut, made for another file or made to harm: one sentence, nothing written, no memory taken."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.tensor_files import plain

from toprope_shared.deltas import Limits, apply, make, read_header
from toprope_shared.deltas.layout import FORMAT, HEADER_BYTES, Group, Header, Kind, Plan, Section, encode, encode_header
from toprope_shared.digest import sha256
from toprope_shared.errors import InputError, IntegrityError

RNG = np.random.default_rng(7)
KERNEL, BIAS = RNG.integers(-99, 99, (30, 40)).astype(np.int8), RNG.normal(size=200).astype(np.float32)
BASE, BEFORE = plain({"a": KERNEL, "b": BIAS})
TARGET, AFTER = plain(
    {"a": (KERNEL * 0.9).astype(np.int8), "b": BIAS * np.float32(1.01), "c": RNG.integers(0, 9, 300)},
    before=b"another head",
)
DELTA = make(BASE, TARGET, BEFORE, AFTER)

small = st.integers(0, 300)
numbers = small | st.integers(0, 2**63 - 1)
groups = st.builds(
    Group,
    st.sampled_from(Kind),
    small,
    st.lists(st.tuples(numbers, numbers), max_size=3).map(tuple),
    st.sampled_from([1, 2, 4, 8]) | numbers,
    st.sampled_from([2, 4, 8]) | numbers,
    small | numbers,
    numbers,
)
sections = st.builds(Section, small | numbers, st.integers(0, 4), small | numbers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").write_bytes(BASE)
    return tmp_path


def run(folder: Path, delta: bytes, *, target: str = sha256(TARGET), limits: Limits | None = None) -> bytes:
    """Apply a delta to the base in a folder; hold that a failure leaves nothing behind."""
    (folder / "delta").write_bytes(delta)
    out = folder / "out"
    try:
        apply(folder / "base", folder / "delta", out, target=target, limits=limits or Limits())
    except BaseException:
        assert sorted(file.name for file in folder.iterdir()) == ["base", "delta"]
        raise
    return out.read_bytes()


def outcome(delta: bytes) -> bytes | None:
    """Return what a delta makes; None where it was refused."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").write_bytes(BASE)
        try:
            return run(folder, delta)
        except (IntegrityError, InputError):
            return None


@given(at=st.integers(0, len(DELTA) - 1), bits=st.integers(1, 255))
@settings(deadline=None, max_examples=200)
def test_a_changed_byte_makes_the_target_or_a_refusal(at: int, bits: int) -> None:
    assert outcome(DELTA[:at] + bytes([DELTA[at] ^ bits]) + DELTA[at + 1 :]) in (None, TARGET)


@given(start=st.integers(0, len(DELTA)), length=small, put=st.binary(max_size=40))
@settings(deadline=None, max_examples=150)
def test_replaced_bytes_make_the_target_or_a_refusal(start: int, length: int, put: bytes) -> None:
    assert outcome(DELTA[:start] + put + DELTA[start + length :]) in (None, TARGET)


@given(st.lists(groups, max_size=4), st.lists(sections, max_size=5), st.binary(max_size=60), small | numbers)
@settings(deadline=None, max_examples=200)
def test_any_table_in_good_form_is_refused_too(one: list[Group], other: list[Section], payload: bytes, length: int) -> None:
    plan = Plan(Header.of(sha256(BASE), len(BASE), sha256(TARGET), length), tuple(one), tuple(other))
    if any(section.group >= len(one) for section in other):
        return
    assert outcome(encode(plan) + payload) in (None, TARGET)


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=50)
def test_any_bytes_are_refused(data: bytes) -> None:
    assert outcome(data) is None


@pytest.mark.parametrize("length", [*range(HEADER_BYTES), len(DELTA) - 1])
def test_a_cut_delta_is_refused(folder: Path, length: int) -> None:
    with pytest.raises(IntegrityError):
        run(folder, DELTA[:length])


def test_a_delta_with_something_behind_it_is_refused(folder: Path) -> None:
    with pytest.raises(IntegrityError, match="bytes of payload"):
        run(folder, DELTA + b"x")


def test_what_is_no_delta_is_told_from_a_damaged_one(folder: Path) -> None:
    with pytest.raises(InputError, match="not a delta"):
        run(folder, b"TFL3" + DELTA)


def test_a_newer_version_says_to_update(folder: Path) -> None:
    with pytest.raises(InputError, match="version 3, this toprope reads 2"):
        run(folder, DELTA[:4] + b"\0\3" + DELTA[6:])


def test_another_base_is_refused(folder: Path) -> None:
    (folder / "base").write_bytes(BASE[:-1] + b"?")
    with pytest.raises(IntegrityError, match="needs the base"):
        run(folder, DELTA)


def test_a_missing_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(DELTA)
    with pytest.raises(IntegrityError, match="is missing"):
        apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out", target=sha256(TARGET))


def test_a_delta_for_another_target_than_the_wanted_one_is_refused(folder: Path) -> None:
    assert run(folder, DELTA, target=sha256(TARGET)) == TARGET
    (folder / "out").unlink()
    with pytest.raises(IntegrityError, match="is wanted"):
        run(folder, DELTA, target=sha256(BASE))


def test_a_target_longer_than_the_limit_is_refused(folder: Path) -> None:
    assert run(folder, DELTA, limits=Limits(target_bytes=len(TARGET))) == TARGET
    (folder / "out").unlink()
    with pytest.raises(IntegrityError, match="target has a length"):
        run(folder, DELTA, limits=Limits(target_bytes=len(TARGET) - 1))


def test_a_failed_delta_leaves_the_file_that_stood_there(folder: Path) -> None:
    (folder / "delta").write_bytes(DELTA[:-20] + bytes(20))
    (folder / "out").write_bytes(b"what stood there")
    with pytest.raises(IntegrityError):
        apply(folder / "base", folder / "delta", folder / "out", target=sha256(TARGET))
    assert (folder / "out").read_bytes() == b"what stood there"
    assert len(list(folder.iterdir())) == 3


def test_a_delta_that_makes_something_else_than_it_promises_is_refused(folder: Path) -> None:
    head = Header.of(sha256(BASE), len(BASE), sha256(b"promised"), 8)
    with pytest.raises(IntegrityError, match="did not make"):
        run(folder, encode(Plan(head, (Group(Kind.COPY),), (Section(8, 0, 0),))), target=sha256(b"promised"))


def test_a_table_that_unpacks_to_a_gigabyte_is_refused(folder: Path) -> None:
    settings_ = zstandard.ZstdCompressionParameters.from_level(3, format=FORMAT)
    bomb = zstandard.ZstdCompressor(compression_params=settings_).compress(bytes(200 * 1024 * 1024))
    head = encode_header(read_header(DELTA), 3, 3, len(bomb) + 1, len(bomb))
    with pytest.raises(IntegrityError, match=r"table is longer|too much memory"):
        run(folder, head + bomb)


def test_a_table_that_is_longer_packed_than_unpacked_is_refused(folder: Path) -> None:
    with pytest.raises(IntegrityError, match="packed table has a length of 30"):
        run(folder, encode_header(read_header(DELTA), 3, 3, 29, 30) + bytes(30))


@pytest.mark.parametrize("numbers", [b"", b"\x80" * 9, b"\1\1\1\1\1", b"\1" * 5 + b"\xff"])
def test_a_header_whose_numbers_do_not_end_is_refused(folder: Path, numbers: bytes) -> None:
    with pytest.raises(IntegrityError, match="header or table is cut"):
        run(folder, DELTA[:22] + numbers)


def test_a_frame_that_wants_a_larger_window_than_8_mib_is_refused(folder: Path) -> None:
    settings_ = zstandard.ZstdCompressionParameters.from_level(1, window_log=24, format=FORMAT)
    stream = zstandard.ZstdCompressor(compression_params=settings_).compressobj()
    frame = stream.compress(TARGET) + stream.flush()
    head = Header.of(sha256(BASE), len(BASE), sha256(TARGET), len(TARGET))
    plan = Plan(head, (Group(Kind.LITERAL, len(frame)),), (Section(len(TARGET), 0),))
    with pytest.raises(IntegrityError, match="memory"):
        run(folder, encode(plan) + frame)


def test_prefixes_that_would_be_read_again_and_again_are_refused(tmp_path: Path) -> None:
    base = bytes(1024 * 1024)
    (tmp_path / "base").write_bytes(base)
    group = Group(Kind.LITERAL, 0, ((0, len(base)),) * 4)
    plan = Plan(Header.of(sha256(base), len(base), sha256(b""), 0), (group,) * 17, ())
    with pytest.raises(IntegrityError, match="look back"):
        run(tmp_path, encode(plan), target=sha256(b""))


def test_the_header_says_what_a_delta_is_for() -> None:
    assert read_header(DELTA) == Header.of(sha256(BASE), len(BASE), sha256(TARGET), len(TARGET))
