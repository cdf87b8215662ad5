"""`toprope doctor` on any machine, against a real server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from tests.fakes.served import served
from tests.shared.serving.conftest import make_shelf
from typer.testing import CliRunner, Result

from toprope_shared.commands import doctor, doctor_app, reach
from toprope_shared.commands.findings import Level
from toprope_shared.errors import InputError

SHELF = make_shelf()
NOW = 1_700_000_000.0


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(SHELF) as where:
        yield where


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def ask_doctor(*arguments: str) -> Result:
    return CliRunner().invoke(doctor_app, list(arguments))


def test_the_doctor_finds_this_machine_fit(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPROPE_HOME", str(tmp_path / "new"))
    url = f"http://{address}"
    result = ask_doctor("--broker", address, "--cloud", url, "--agent", url)
    assert result.exit_code == 0, result.stdout
    lines = result.stdout.splitlines()
    assert any(line.startswith("ok    engine onnxruntime ") for line in lines)
    assert f"ok    a broker listens at {address}" in lines
    assert f"ok    the agent answers at {url}" in lines
    assert "ok    this machine's clock agrees with the cloud's" in lines
    assert not any(line.startswith("fail") for line in lines)
    assert not (tmp_path / "new").exists()


def test_what_was_asked_for_and_is_away_is_a_failure_with_advice(free_port: int) -> None:
    result = ask_doctor("--broker", f"127.0.0.1:{free_port}", "--cloud", f"http://127.0.0.1:{free_port}", "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert not said["ok"]
    failed = [one for one in said["findings"] if one["level"] == "fail"]
    assert [one["about"] for one in failed] == ["broker", "cloud"]
    assert all(one["advice"] for one in failed)


def test_what_was_not_asked_for_is_a_warning(free_port: int) -> None:
    assert reach.check_broker(f"127.0.0.1:{free_port}", Level.WARNING).level is Level.WARNING
    assert reach.check_url("cloud", f"http://127.0.0.1:{free_port}", Level.WARNING)[0].level is Level.WARNING


def test_something_else_at_the_url_is_found_out(address: str) -> None:
    (finding,) = reach.check_url("cloud", f"http://{address}/v2/models", Level.ERROR)
    assert finding.level is Level.ERROR


def test_an_alive_agent_without_a_model_is_told(address: str) -> None:
    try:
        for held in SHELF.models_:
            held.ready = False
        assert reach.check_url("agent", f"http://{address}", Level.ERROR)[0].text.endswith("alive but not ready")
    finally:
        for held in SHELF.models_:
            held.ready = True


def test_a_broker_is_named_by_host_and_port() -> None:
    with pytest.raises(InputError, match="host:port"):
        reach.check_broker("localhost", Level.ERROR)


@pytest.mark.parametrize(
    ("off", "level", "word"),
    [(20, Level.OK, "agrees"), (-7200, Level.WARNING, "behind"), (7200, Level.WARNING, "ahead of")],
)
def test_a_clock_that_is_off_is_told(off: float, level: Level, word: str) -> None:
    (finding,) = reach.check_date(formatdate(NOW, usegmt=True), NOW + off)
    assert finding.level is level
    assert word in finding.text


def test_an_answer_without_a_date_says_nothing_about_the_clock() -> None:
    assert reach.check_date("", NOW) == []
    assert reach.check_date("yesterday", NOW) == []


@pytest.mark.parametrize(("version", "level"), [((3, 10, 9), Level.ERROR), ((3, 11, 0), Level.OK), ((3, 14, 1), Level.OK)])
def test_an_old_python_is_told(version: tuple[int, ...], level: Level) -> None:
    assert doctor.check_python(version).level is level


@pytest.mark.parametrize(
    ("libc", "level"),
    [(("glibc", "2.36"), Level.OK), (("glibc", "2.17"), Level.WARNING), (("", ""), Level.WARNING)],
)
def test_an_old_or_other_c_library_is_told(libc: tuple[str, str], level: Level) -> None:
    assert doctor.check_glibc(libc).level is level


@pytest.mark.parametrize(("numpy", "level"), [("1.26.4", Level.OK), ("2.1.0", Level.ERROR)])
def test_numpy_must_suit_tflite_runtime(numpy: str, level: Level) -> None:
    finding = doctor.check_numpy(numpy, "2.14.0")
    assert finding.level is level
    assert ("numpy<2" in finding.advice) == (level is Level.ERROR)


def test_a_state_folder_below_a_file_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor.check_home(tmp_path / "file" / "home")[0].level is Level.ERROR
    assert doctor.check_home(tmp_path / "a" / "b")[0].level is Level.OK
