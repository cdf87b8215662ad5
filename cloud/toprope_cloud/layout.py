"""Where the cloud keeps what, below one folder (`TOPROPE_HOME`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders and files of one installation."""

    home: Path

    @property
    def keys(self) -> Path:
        """Private keys and the operator's token, 0600."""
        return self.home / "keys"

    @property
    def offline(self) -> Path:
        """One folder for each private key of a production ceremony; they are carried away."""
        return self.home / "offline"

    @property
    def trust(self) -> Path:
        """Public TUF metadata."""
        return self.home / "trust"

    @property
    def broker(self) -> Path:
        """The broker's users, configuration and storage."""
        return self.home / "broker"

    @property
    def blobs(self) -> Path:
        """Artifacts by digest."""
        return self.home / "cloud" / "blobs"

    @property
    def database(self) -> Path:
        """Devices, their reports, and training jobs."""
        return self.home / "cloud" / "fleet.sqlite"

    @property
    def jobs(self) -> Path:
        """One folder for each training job: its log and its bundle."""
        return self.home / "jobs"

    def device(self, name: str) -> Path:
        """A device's enrolment: its credentials and the bootstrap root."""
        return self.home / "devices" / name
