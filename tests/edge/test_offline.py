"""Trust from a directory: believed no more than a broker, and with what it names."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from tests.fakes.clocks import ManualClock
from tests.fakes.releases import tiny_release
from tests.trust.repository import Repository
from tuf.api.metadata import TargetFile

from toprope_edge import offline
from toprope_edge.journal import Journal
from toprope_edge.offline import Taken
from toprope_edge.settings import EdgeSettings
from toprope_shared.blobs import Blobs
from toprope_shared.errors import InputError, TrustError
from toprope_shared.manifest import encode
from toprope_shared.messages import DesiredRelease, Rollout
from toprope_shared.revocation import COUNTER
from toprope_shared.trust import MODELS

NOW = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
SETTINGS = EdgeSettings(device="dev-1")


class Stick:
    """A directory, and the device that it is carried to."""

    def __init__(self, folder: Path) -> None:
        self.home, self.folder = folder / "home", folder / "stick"
        self.clock = ManualClock(NOW)
        self.repository = Repository(NOW)
        self.blobs = Blobs(self.folder / "blobs")
        device = self.home / "devices" / "dev-1"
        device.mkdir(parents=True)
        (device / "root.json").write_bytes(self.repository.bootstrap)
        (device / "credentials.json").write_text('{"device": "dev-1", "username": "", "password": "", "client_id": ""}')
        self.state = device / "state"

    def roll_out(self, version: int) -> None:
        """Sign a release and a rollout of it, and write everything to the stick."""
        self.manifest = manifest = tiny_release(self.blobs, version=f"1.{version}.0", counter=version)
        data = encode(manifest)
        target = TargetFile.from_data(manifest.path, data, ["sha256"])
        target.unrecognized_fields["custom"] = {COUNTER: version}
        self.repository.md[MODELS].signed.targets[manifest.path] = target
        self.repository.publish(MODELS)
        release = DesiredRelease(manifest.model, manifest.version, version, self.blobs.put(data), len(data))
        rollout = msgspec.json.encode(Rollout(1, "stable", version, (release,), int(NOW) + 1000))
        self.blobs.put(rollout)
        self.repository.roll_out(rollout)
        shutil.rmtree(self.folder / "trust", ignore_errors=True)
        self.repository.write(self.folder / "trust")

    def take(self) -> Taken:
        return offline.take(SETTINGS, self.home, self.folder, clock=self.clock)

    def reports(self) -> list[str]:
        journal = Journal(self.state / "journal.sqlite")
        try:
            return [report.state for report in journal.reports()]
        finally:
            journal.close()


@pytest.fixture
def stick(tmp_path: Path) -> Stick:
    made = Stick(tmp_path)
    made.roll_out(1)
    return made


def test_what_the_rollout_names_comes_with_the_metadata(stick: Stick) -> None:
    taken = stick.take()
    assert (taken.releases, taken.rollout, taken.missing) == (1, 1, 0)
    assert taken.blobs > 0


def test_metadata_alone_is_taken_too(stick: Stick) -> None:
    shutil.rmtree(stick.folder / "blobs")
    taken = stick.take()
    assert (taken.releases, taken.rollout) == (1, None)


def test_an_altered_file_on_the_stick_is_not_copied(stick: Stick) -> None:
    whole = stick.take()
    shutil.rmtree(stick.state / "blobs")
    (stick.folder / "blobs" / stick.manifest.golden.artifact.sha256).write_bytes(b"x")
    taken = stick.take()
    assert (taken.blobs, taken.missing) == (whole.blobs - 1, 1)


def test_an_older_stick_is_an_attack_that_is_reported_even_after_a_wipe(stick: Stick, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(stick.folder, old)
    stick.roll_out(2)
    stick.take()
    shutil.rmtree(stick.state / "trust")
    with pytest.raises(TrustError, match="attack"):
        offline.take(SETTINGS, stick.home, old, clock=stick.clock)
    assert stick.reports() == ["ATTACK"]


def test_an_expired_stick_is_refused_with_a_sentence(stick: Stick) -> None:
    stick.clock.advance(10 * 86_400)
    with pytest.raises(TrustError, match=r"it is stale: timestamp\.json is expired"):
        stick.take()
    assert stick.reports() == []


def test_a_folder_without_metadata_is_refused_with_a_sentence(stick: Stick, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no timestamp\.json in"):
        offline.take(SETTINGS, stick.home, tmp_path / "nothing")
