"""Who may ask the cloud: what the settings allow, what they refuse, and the commands for keys."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.clocks import ManualClock
from typer.testing import CliRunner

from toprope_cloud import ceremony
from toprope_cloud.broker import BrokerFiles
from toprope_cloud.cli import cloud_app
from toprope_cloud.credentials import make_gate
from toprope_cloud.credentials_cli import api_key_app
from toprope_cloud.keys import Keyring
from toprope_cloud.layout import Layout
from toprope_cloud.settings import CloudSettings
from toprope_shared.errors import InputError, NotAdmittedError
from toprope_shared.loopback import is_loopback
from toprope_shared.serving.gate import Gate


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path)
    ceremony.init(made.keys, made.trust)
    return made


def gate(layout: Layout, **settings: Any) -> Gate | None:
    return make_gate(CloudSettings(**settings), layout, Keyring(layout.keys).token())


def credentials(layout: Layout, device: str) -> dict[str, str]:
    """Enrol a device and return what it shows."""
    made = json.loads((BrokerFiles(layout).enroll(device) / "credentials.json").read_text())
    shown = base64.b64encode(f"{made['username']}:{made['password']}".encode()).decode()
    return {"authorization": f"Basic {shown}"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_on_loopback_nobody_is_asked(layout: Layout, host: str) -> None:
    assert gate(layout, host=host) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "cloud.example", "", "localhost.example"])  # noqa: S104
def test_any_other_address_must_say_who_may_come_in(layout: Layout, host: str) -> None:
    with pytest.raises(InputError, match="api-key add"):
        gate(layout, host=host)
    assert gate(layout, host=host, auth="off") is None
    assert gate(layout, host=host, auth="on")
    assert not is_loopback(host)


def test_the_service_does_not_start_where_nobody_said_who_may_come_in(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPROPE_HOME", str(layout.home))
    refused = CliRunner().invoke(cloud_app, ["run", "--host", "0.0.0.0", "--port", "0"])  # noqa: S104 - it must not listen
    assert isinstance(refused.exception, InputError)
    assert 'auth = "on"' in str(refused.exception)


@pytest.mark.parametrize("settings", [{"rate": 5}, {"jwt_keys": "keys.json"}, {"auth": "off", "rate": 5}])
def test_settings_about_callers_need_callers_who_say_who_they_are(layout: Layout, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match='auth = "on"'):
        gate(layout, **settings)


def test_an_enrolled_device_and_the_operator_are_admitted_with_what_they_have(layout: Layout) -> None:
    asked = gate(layout, auth="on")
    assert asked
    shown = credentials(layout, "cam")
    assert asked.admit(shown, "digits") == "device:cam"
    token = {"authorization": f"Bearer {Keyring(layout.keys).token()}"}
    assert asked.admit(token, "digits", operate=True) == "operator"


def test_the_clouds_own_password_at_the_broker_is_no_devices(layout: Layout) -> None:
    asked, cloud = gate(layout, auth="on"), BrokerFiles(layout).cloud()
    shown = base64.b64encode(f"{cloud.username}:{cloud.password}".encode()).decode()
    assert asked
    with pytest.raises(NotAdmittedError):
        asked.admit({"authorization": f"Basic {shown}"})


def test_a_device_that_is_enrolled_later_is_admitted_at_once(layout: Layout) -> None:
    asked = gate(layout, auth="on")
    assert asked
    credentials(layout, "first")
    with pytest.raises(NotAdmittedError):
        asked.admit({"authorization": "Basic " + base64.b64encode(b"late:x").decode()})
    assert asked.admit(credentials(layout, "late")) == "device:late"


def test_a_device_that_is_expelled_is_refused_a_second_later(layout: Layout) -> None:
    clock = ManualClock()
    asked = make_gate(CloudSettings(auth="on"), layout, Keyring(layout.keys).token(), clock=clock)
    assert asked
    lost, kept = credentials(layout, "lost"), credentials(layout, "kept")
    clock.advance(1)
    assert asked.admit(lost) == "device:lost"
    BrokerFiles(layout).expel("lost")
    clock.advance(1)
    with pytest.raises(NotAdmittedError):
        asked.admit(lost)
    assert asked.admit(kept) == "device:kept"


def test_a_key_is_shown_once_listed_without_itself_and_removed(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPROPE_HOME", str(layout.home))
    run = CliRunner()
    added = run.invoke(api_key_app, ["add", "web", "--model", "digits", "--model", "linear", "--days", "30"])
    key = added.stdout.strip()
    asked = gate(layout, auth="on")
    assert asked
    assert asked.admit({"authorization": f"Bearer {key}"}, "linear") == "key:web"
    listed = run.invoke(api_key_app, ["list", "--json"]).stdout
    (row,) = json.loads(listed)
    assert (row["name"], row["models"]) == ("web", ["digits", "linear"])
    assert row["until"] > row["made"]
    shown = run.invoke(api_key_app, ["list"]).stdout
    assert "web" in shown
    assert key not in listed + shown
    assert run.invoke(api_key_app, ["remove", "web"]).exit_code == 0
    assert json.loads(run.invoke(api_key_app, ["list", "--json"]).stdout) == []
