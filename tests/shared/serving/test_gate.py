"""Who is let in, for which model, how often, and how soon a revoked key is not."""

from __future__ import annotations

import base64
import json
import stat
import threading
from pathlib import Path

import pytest
from tests.fakes.clocks import ManualClock

from toprope_shared.errors import InputError, NotAdmittedError, NotAllowedError, NotFoundError, TooManyRequestsError
from toprope_shared.serving.api_keys import ApiKeys
from toprope_shared.serving.gate import Caller, Gate, Rates
from toprope_shared.serving.http_errors import error_reply


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def keys(tmp_path: Path, clock: ManualClock) -> ApiKeys:
    return ApiKeys(tmp_path / "keys" / "api-keys.json", clock=clock)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def basic(name: str, password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


class Devices:
    """Devices with passwords, as an enrolment would know them."""

    def __init__(self, **passwords: str) -> None:
        self.passwords = passwords
        self.asked = 0

    def stamp(self) -> object:
        return tuple(self.passwords)

    def caller(self, name: str, secret: str) -> Caller | None:
        self.asked += 1
        return Caller(f"device:{name}") if self.passwords.get(name) == secret else None


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_key_is_admitted_as_a_bearer_and_in_a_header_of_its_own(keys: ApiKeys, clock: ManualClock, scheme: str) -> None:
    gate, key = Gate([keys], clock=clock), keys.add("web")
    assert gate.admit({"authorization": f"{scheme} {key}"}) == "key:web"
    assert gate.admit({"x-api-key": key}, "digits") == "key:web"


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer tpr_wrong",
        "Basic",
        "Basic !!!",
        "Basic dHByX3c=",
        "Digest x",
        "tpr_",
        "Bearer \udcff",
    ],
)
def test_anything_else_is_not_admitted(keys: ApiKeys, clock: ManualClock, shown: str) -> None:
    keys.add("web")
    with pytest.raises(NotAdmittedError) as raised:
        Gate([keys], clock=clock).admit({"authorization": shown})
    reply = error_reply(raised.value)
    assert reply.status == 401
    assert "WWW-Authenticate" in reply.headers
    assert json.loads(reply.body)["code"] == "not_admitted"


def test_a_key_is_read_by_the_header_that_it_stands_in_whatever_was_admitted_before(
    keys: ApiKeys, clock: ManualClock
) -> None:
    gate, key = Gate([keys], clock=clock), keys.add("web")
    for _ in range(2):
        for shown in ({"x-api-key": key}, {"x-api-key": f"{key} "}, {"authorization": "", "x-api-key": key}, bearer(key)):
            assert gate.admit(shown) == "key:web"
        for shown in (
            {"authorization": key},
            {"x-api-key": f"Bearer {key}"},
            {"authorization": "Bearer x", "x-api-key": key},
        ):
            with pytest.raises(NotAdmittedError):
                gate.admit(shown)


def test_nothing_that_was_shown_stands_in_the_refusal(keys: ApiKeys, clock: ManualClock) -> None:
    with pytest.raises(NotAdmittedError) as raised:
        Gate([keys], clock=clock).admit(bearer("tpr_close-to-a-real-one"))
    assert "tpr_close" not in str(raised.value)


def test_a_key_for_some_models_asks_no_other(keys: ApiKeys, clock: ManualClock) -> None:
    gate, key = Gate([keys], clock=clock), keys.add("web", models=["digits", "linear"])
    assert gate.admit(bearer(key), "digits") == "key:web"
    with pytest.raises(NotAllowedError, match="'support'") as raised:
        gate.admit(bearer(key), "support")
    assert error_reply(raised.value).status == 403
    assert gate.admit(bearer(key)) == "key:web"  # what is about no model: lists and health


def test_loading_and_unloading_is_the_operators(keys: ApiKeys, clock: ManualClock) -> None:
    class Operator(Devices):
        def caller(self, name: str, secret: str) -> Caller | None:
            return Caller("operator", operator=True) if secret == "boss" else None

    gate, key = Gate([keys, Operator()], clock=clock), keys.add("web")
    with pytest.raises(NotAllowedError, match="operator"):
        gate.admit(bearer(key), "digits", operate=True)
    assert gate.admit(bearer("boss"), "digits", operate=True) == "operator"


def test_a_key_expires_to_the_second_though_it_was_known(keys: ApiKeys, clock: ManualClock) -> None:
    gate, key = Gate([keys], clock=clock), keys.add("web", days=1)
    clock.advance(86_399)
    assert gate.admit(bearer(key)) == "key:web"
    clock.advance(1)
    with pytest.raises(NotAdmittedError):
        gate.admit(bearer(key))


def test_a_revoked_key_is_refused_a_second_later_and_the_others_are_not(keys: ApiKeys, clock: ManualClock) -> None:
    gate, web, job = Gate([keys], clock=clock), keys.add("web"), keys.add("job")
    assert {gate.admit(bearer(key)) for key in (web, job)} == {"key:web", "key:job"}
    keys.remove("web")
    clock.advance(1)
    with pytest.raises(NotAdmittedError):
        gate.admit(bearer(web))
    assert gate.admit(bearer(job)) == "key:job"


def test_a_key_that_is_made_while_the_gate_is_open_is_admitted_at_once(keys: ApiKeys, clock: ManualClock) -> None:
    gate = Gate([keys], clock=clock)
    assert gate.admit(bearer(keys.add("late"))) == "key:late"


def test_a_file_of_keys_that_was_damaged_admits_nobody(
    keys: ApiKeys, clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate, key = Gate([keys], clock=clock), keys.add("web")
    assert gate.admit(bearer(key))
    (tmp_path / "keys" / "api-keys.json").write_text('{"keys": [{"name": ')
    clock.advance(1)
    with pytest.raises(NotAdmittedError):
        gate.admit(bearer(key))
    assert "can't be read" in caplog.text


def test_the_file_holds_no_key_and_is_private(keys: ApiKeys, tmp_path: Path) -> None:
    key = keys.add("web")
    file = tmp_path / "keys" / "api-keys.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in file.read_text()
    assert key.removeprefix("tpr_") not in file.read_text()
    assert len(key) > 40


@pytest.mark.parametrize("name", ["", "a b", "../x", "a" * 65, "ü", "-x"])
def test_a_name_that_no_log_should_show_is_refused(keys: ApiKeys, name: str) -> None:
    with pytest.raises(InputError, match="name an API key"):
        keys.add(name)


@pytest.mark.parametrize("days", [0, -1, float("nan"), float("inf")])
def test_days_that_make_no_sense_are_refused(keys: ApiKeys, days: float) -> None:
    with pytest.raises(InputError, match="days"):
        keys.add("web", days=days)


def test_a_name_is_given_once_and_what_is_not_there_is_not_removed(keys: ApiKeys) -> None:
    keys.add("web")
    with pytest.raises(InputError, match="already"):
        keys.add("web")
    with pytest.raises(NotFoundError):
        keys.remove("nobody")


def test_keys_that_are_made_at_the_same_time_are_all_kept(keys: ApiKeys) -> None:
    threads = [threading.Thread(target=keys.add, args=(f"k{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.name for one in keys.stored()} == {f"k{number}" for number in range(8)}


def test_a_device_shows_its_enrolment_and_is_looked_up_once(clock: ManualClock) -> None:
    devices = Devices(cam="secret:with:colons")
    gate = Gate([devices], clock=clock)
    assert [gate.admit(basic("cam", "secret:with:colons")) for _ in range(3)] == ["device:cam"] * 3
    assert devices.asked == 1
    with pytest.raises(NotAdmittedError):
        gate.admit(basic("cam", "secret"))


def test_what_is_remembered_stays_bounded(clock: ManualClock) -> None:
    class Anybody(Devices):
        def caller(self, name: str, secret: str) -> Caller | None:
            return Caller(f"token:{secret}")

    gate = Gate([Anybody()], rate=1, clock=clock, most=100)
    for number in range(250):
        gate.admit(bearer(str(number)))
    assert len(gate._known) == 100
    assert gate._limits
    assert len(gate._limits._buckets) <= 100


def test_each_caller_has_a_rate_of_his_own(keys: ApiKeys, clock: ManualClock) -> None:
    gate, web, job = Gate([keys], rate=2, burst=3, clock=clock), keys.add("web"), keys.add("job")
    for _ in range(3):
        gate.admit(bearer(web))
    with pytest.raises(TooManyRequestsError) as raised:
        gate.admit(bearer(web))
    reply = error_reply(raised.value)
    assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
    assert gate.admit(bearer(job)) == "key:job"
    clock.advance(0.5)
    assert gate.admit(bearer(web)) == "key:web"
    with pytest.raises(TooManyRequestsError):
        gate.admit(bearer(web))


def test_a_slow_rate_says_how_long_to_wait() -> None:
    rates = Rates(0.1)
    rates.take("a", 0.0)
    with pytest.raises(TooManyRequestsError) as raised:
        rates.take("a", 1.0)
    assert raised.value.retry_after_s == 9
    rates.take("a", 10.0)
