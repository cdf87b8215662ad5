"""Devices and reports as rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cloud.conftest import Installation

from toprope_cloud.broker import BrokerFiles
from toprope_cloud.fleet import Fleet
from toprope_shared.errors import InputError
from toprope_shared.messages import DeviceState, Report


def test_a_report_that_comes_twice_is_stored_once(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "fleet.sqlite")
    report = Report(number=1, at=5, model="m", version="1.0.0", state="FETCHING")
    assert [fleet.put_report("d", report), fleet.put_report("d", report)] == [1, 1]
    assert len(fleet.devices()[0]["reports"]) == 1
    fleet.close()


def test_reports_of_a_journal_that_was_begun_anew_are_stored_beside_the_older_ones(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "fleet.sqlite")
    came = [(1, 7), (2, 7), (1, 9), (1, 9), (3, 7)]
    reports = [Report(number, 5, "m", "1.0.0", "FETCHING", journal=journal) for number, journal in came]
    assert [fleet.put_report("d", report) for report in reports] == [1, 2, 1, 1, 3]
    shown = [(one["number"], one["journal"]) for one in fleet.devices()[0]["reports"]]
    assert shown == [(1, 7), (2, 7), (1, 9), (3, 7)]
    fleet.close()


def test_a_will_of_an_older_session_is_passed_over(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "fleet.sqlite")
    fleet.put_state("d", DeviceState("d", True, 2, engines=("onnxruntime/1",)))
    fleet.put_state("d", DeviceState("d", False, 1))
    assert fleet.devices()[0]["online"] is True
    fleet.put_state("d", DeviceState("d", False, 2))
    assert (fleet.devices()[0]["online"], fleet.devices()[0]["engines"]) == (False, ("onnxruntime/1",))
    fleet.close()


def test_a_device_is_enrolled_once_with_private_credentials(installation: Installation) -> None:
    files = BrokerFiles(installation.layout)
    folder = files.enroll("dev-1")
    assert (folder / "credentials.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="enrolled already"):
        files.enroll("dev-1")
    with pytest.raises(InputError, match="characters"):
        files.enroll("dev/../1")
