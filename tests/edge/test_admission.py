"""Who may ask a device's own doors: nobody is asked on loopback, and elsewhere it must be said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.fakes.served import served
from tests.shared.serving.conftest import make_shelf
from typer.testing import CliRunner

import toprope_edge
from toprope_cloud.credentials_cli import api_key_app
from toprope_edge import agent
from toprope_edge.admission import open_gate
from toprope_edge.cloud_way import overheard
from toprope_edge.cloud_wire import CloudError, Reply, read_answer
from toprope_edge.settings import EdgeSettings
from toprope_edge.watchdog import Notifier
from toprope_shared.commands.predict import predict_app
from toprope_shared.errors import InputError, NotAdmittedError, RequestError
from toprope_shared.inference import CloudReason


def settings(**more: str | int) -> EdgeSettings:
    return EdgeSettings(device="till", **more)  # type: ignore[arg-type]


def make_key(folder: Path, *options: str) -> str:
    """Make a key in the file that a device reads, the way an operator does."""
    file = folder / "devices" / "till" / "api-keys.json"
    return CliRunner().invoke(api_key_app, ["add", "shop", "--file", str(file), *options]).stdout.strip()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "till.example"])  # noqa: S104 - nothing listens
def test_any_address_but_loopback_must_say_who_may_come_in(tmp_path: Path, host: str) -> None:
    with pytest.raises(InputError, match="api-key add"):
        open_gate(settings(host=host), tmp_path)
    assert open_gate(settings(host=host, auth="off"), tmp_path) is None
    assert open_gate(settings(), tmp_path) is None


async def test_the_agent_does_not_start_where_nobody_said_who_may_come_in(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="open to everybody"):
        await agent.run(settings(host="0.0.0.0", port=0), tmp_path, Notifier.of({}))  # noqa: S104 - it must not listen


def test_doors_that_ask_need_a_file_of_keys(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no API keys in"):
        open_gate(settings(auth="on"), tmp_path)
    key = make_key(tmp_path)
    for known in (settings(auth="on"), settings(auth="on", api_keys=str(tmp_path / "devices/till/api-keys.json"))):
        gate = open_gate(known, tmp_path)
        assert gate
        assert gate.admit({"authorization": f"Bearer {key}"}) == "key:shop"
        with pytest.raises(NotAdmittedError):
            gate.admit({})


def test_a_key_may_be_made_that_loads_and_unloads(tmp_path: Path) -> None:
    key = make_key(tmp_path, "--operator")
    gate = open_gate(settings(auth="on"), tmp_path)
    assert gate
    assert gate.admit({"authorization": f"Bearer {key}"}, "digits", operate=True) == "key:shop"


def test_programs_and_the_command_show_a_key(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    rows = np.ones((1, 3), np.float32)
    with served(make_shelf(), gate=open_gate(settings(auth="on"), tmp_path)) as address:
        with toprope_edge.connect(f"http://{address}", key=key) as client:
            assert client.infer("affine", {"x": rows}).outputs["y"].tolist() == [[3.0, 3.0, 3.0]]
        with toprope_edge.connect(f"http://{address}") as client, pytest.raises(RequestError, match="credentials"):
            client.infer("affine", {"x": rows})
        asked = ["affine", "--input", "[[1, 1, 1]]", "--url", f"http://{address}"]
        assert CliRunner().invoke(predict_app, [*asked, "--key", key]).exit_code == 0
        assert CliRunner().invoke(predict_app, asked, env={"TOPROPE_API_KEY": key}).exit_code == 0
        refused = CliRunner().invoke(predict_app, asked)
        assert isinstance(refused.exception, RequestError)


def test_a_key_with_a_line_break_begins_no_header() -> None:
    with pytest.raises(InputError, match="line break"):
        toprope_edge.connect("http://127.0.0.1:9", key="tpr_x\r\nX-Evil: 1")


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://[::1]:8000", False),
        ("http://localhost:8000/x", False),
        ("https://cloud.example", False),
        ("http://cloud.example:8000", True),
        ("http://192.0.2.7", True),
    ],
)
def test_a_password_that_leaves_the_machine_unencrypted_is_noticed(url: str, read: bool) -> None:
    assert overheard(url) is read


@pytest.mark.parametrize("status", [401, 403])
def test_a_cloud_that_does_not_take_the_credentials_says_so_and_is_no_fault_of_the_caller(status: int) -> None:
    body = b'{"error": "these credentials are not known here", "code": "not_admitted"}'
    with pytest.raises(CloudError, match="enrol it again") as raised:
        read_answer(Reply(status, {}, body))
    assert raised.value.reason is CloudReason.CLOUD_ERROR


def test_a_device_that_asks_too_often_leaves_the_cloud_alone_for_as_long_as_it_was_told() -> None:
    with pytest.raises(CloudError) as raised:
        read_answer(Reply(429, {"retry-after": "7"}, b'{"error": "too often", "code": "too_many_requests"}'))
    assert (raised.value.reason, raised.value.retry_after_s) == (CloudReason.CLOUD_OVERLOADED, 7)
