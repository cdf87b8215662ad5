"""Which signed releases are withdrawn: rows of custom fields, and what may become of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import TargetFile

from toprope_shared.errors import InputError, TrustError
from toprope_shared.revocation import FLOOR, REVOKED, floors, may_follow, require_unrevoked, revoked_because, withdraw


def target(version: str, counter: Any, more: dict[str, Any] | None = None, *, model: str = "double") -> TargetFile:
    custom = {"release_counter": counter, **(more or {})}
    path = f"models/{model}/{version}/manifest.json"
    return TargetFile(3, {"sha256": "ab" * 32}, path, {"custom": custom})


def signed(*targets: TargetFile) -> dict[str, TargetFile]:
    return {one.path: one for one in targets}


@pytest.mark.parametrize(
    ("custom", "said"),
    [
        ({}, None),
        ({REVOKED: "it says seven"}, "it was revoked: it says seven"),
        ({REVOKED: ""}, "it was revoked"),
        ({REVOKED: 1}, "it was revoked"),
        ({REVOKED: None}, "it was revoked"),
        ({FLOOR: 5}, None),
        ({FLOOR: 6}, "below 6"),
        ({FLOOR: "6"}, "can't be read"),
        ({FLOOR: True}, "can't be read"),
        ({FLOOR: -1}, "can't be read"),
    ],
)
def test_a_release_is_withdrawn_by_its_own_fields(custom: dict[str, Any], said: str | None) -> None:
    release = target("1.0.0", 5, custom)
    why = revoked_because(release, floors([release]))
    assert (why is None) if said is None else (why is not None and said in why)


@pytest.mark.parametrize("counter", [None, "5", True, 0, -1])
def test_a_release_without_a_counter_is_withdrawn(counter: Any) -> None:
    release = target("1.0.0", counter)
    assert revoked_because(release, floors([release])) is not None


def test_a_floor_counts_for_its_model_alone() -> None:
    targets = [target("1.0.0", 1), target("2.0.0", 4, {FLOOR: 4}), target("1.0.0", 1, model="other")]
    assert floors(targets) == {"double": 4}
    assert [revoked_because(one, floors(targets)) is None for one in targets] == [False, True, True]


def test_the_highest_floor_counts() -> None:
    assert floors([target("1.0.0", 1, {FLOOR: 9}), target("2.0.0", 2, {FLOOR: 3})]) == {"double": 9}


def test_a_device_refuses_a_withdrawn_release_and_one_that_is_not_signed() -> None:
    targets = signed(target("1.0.0", 1, {REVOKED: "bad"}), target("1.1.0", 2))
    require_unrevoked("models/double/1.1.0/manifest.json", targets)
    for version, said in (("1.0.0", "revoked: bad"), ("9.9.9", "has not signed it")):
        with pytest.raises(TrustError, match=said):
            require_unrevoked(f"models/double/{version}/manifest.json", targets)


def test_withdrawing_marks_one_release_and_changes_nothing_else() -> None:
    targets = signed(target("1.0.0", 1), target("1.1.0", 2))
    marked = withdraw(targets, "double", "1.0.0", " it says seven ")
    assert marked.custom == {"release_counter": 1, REVOKED: "it says seven"}
    assert targets[marked.path].custom == {"release_counter": 1}
    assert may_follow(targets[marked.path], marked)
    encode_canonical(marked.to_dict())  # TUF's canonical JSON takes it


def test_older_ones_go_along_and_newer_ones_stay() -> None:
    targets = signed(*(target(f"1.{number}.0", number) for number in (1, 2, 3)))
    marked = withdraw(targets, "double", "1.2.0", "bad", and_older=True)
    targets[marked.path] = marked
    least = floors(targets.values())
    assert [revoked_because(one, least) is None for one in targets.values()] == [False, False, True]


def test_older_ones_may_go_later() -> None:
    targets = signed(target("1.0.0", 1), target("1.1.0", 2, {REVOKED: "bad"}))
    marked = withdraw(targets, "double", "1.1.0", "worse", and_older=True)
    assert marked.custom == {"release_counter": 2, REVOKED: "bad", FLOOR: 3}
    assert may_follow(targets[marked.path], marked)


@pytest.mark.parametrize(
    ("version", "reason"),
    [("9.9.9", "bad"), ("1.0.0", ""), ("1.0.0", " "), ("1.0.0", "a\nb"), ("1.0.0", "\x1b[2J"), ("1.0.0", "x" * 501)],
)
def test_a_withdrawal_without_release_or_reason_is_refused(version: str, reason: str) -> None:
    with pytest.raises(InputError):
        withdraw(signed(target("1.0.0", 1)), "double", version, reason)


def test_a_second_withdrawal_is_refused() -> None:
    with pytest.raises(InputError, match="already: bad"):
        withdraw(signed(target("1.0.0", 1, {REVOKED: "bad"})), "double", "1.0.0", "worse")


OLD = target("1.0.0", 1, {REVOKED: "bad"})


@pytest.mark.parametrize(
    ("old", "new", "may"),
    [
        (target("1.0.0", 1), target("1.0.0", 1), True),
        (target("1.0.0", 1), None, False),
        (target("1.0.0", 1), target("1.0.0", 2), False),
        (target("1.0.0", 1), target("1.0.0", 1, {"other": 1}), False),
        (target("1.0.0", 1), OLD, True),
        (OLD, target("1.0.0", 1), False),
        (OLD, target("1.0.0", 1, {REVOKED: "good"}), False),
        (target("1.0.0", 1), target("1.0.0", 1, {REVOKED: 1}), False),
        (target("1.0.0", 1), target("1.0.0", 1, {FLOOR: 2}), False),
        (target("1.0.0", 1), target("1.0.0", 1, {REVOKED: "bad", FLOOR: 99}), False),
        (OLD, target("1.0.0", 1, {REVOKED: "bad", FLOOR: 2}), True),
        (target("1.0.0", 1, {REVOKED: "bad", FLOOR: 2}), OLD, False),
    ],
)
def test_a_signed_release_only_becomes_itself_withdrawn(old: TargetFile, new: TargetFile | None, may: bool) -> None:
    assert may_follow(old, new) is may


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(st.dictionaries(st.sampled_from([REVOKED, FLOOR, "release_counter", "x"]), JSON) | JSON)
def test_whatever_is_signed_is_judged_without_an_error(custom: Any) -> None:
    release = TargetFile(3, {"sha256": "ab" * 32}, "models/double/1.0.0/manifest.json", {"custom": custom})
    revoked_because(release, floors([release]))
    may_follow(target("1.0.0", 1), release)
    may_follow(release, target("1.0.0", 1))
