"""Every MQTT topic, in one place. Levels are `[A-Za-z0-9_-]`, so the names hold on every broker profile."""

from __future__ import annotations

import re
from dataclasses import dataclass

from toprope_shared.errors import InputError

PREFIX = "toprope/v1"
SHARDS = 16
_LEVEL = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_level(text: str, what: str) -> str:
    """Return `text` when it can be one level of a topic.

    Raises:
        InputError: it holds other characters, or is empty or too long.
    """
    if not _LEVEL.fullmatch(text):
        raise InputError(f"{what} {text!r} must be 1 to 64 of the characters A-Z a-z 0-9 _ -")
    return text


def shard_of(sha256: str) -> int:
    """Return the shard of an artifact: its digest's first hex digit, so that all who want it ask the same sender."""
    return int(sha256[0], 16)


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics below one prefix."""

    prefix: str = PREFIX

    @property
    def head(self) -> str:
        """Unsigned hint of the newest metadata versions; cloud to all, QoS 1, retained."""
        return f"{self.prefix}/trust/head"

    @property
    def timestamp(self) -> str:
        """TUF timestamp; cloud to all, QoS 1, retained."""
        return f"{self.prefix}/trust/timestamp"

    def metadata(self, role: str, version: int) -> str:
        """One version of one role's TUF metadata; cloud to all, QoS 1, retained."""
        return f"{self.prefix}/trust/{role}/{version}"

    def rollout(self, channel: str) -> str:
        """The rollout document of a channel, a TUF target; cloud to all, QoS 1, retained."""
        return f"{self.prefix}/rollouts/{channel}"

    def need(self, shard: int, device: str) -> str:
        """NEED messages; device to cloud, QoS 0."""
        return f"{self.prefix}/need/{shard}/{device}"

    @property
    def all_needs(self) -> str:
        """Filter of every device's NEED messages."""
        return f"{self.prefix}/need/+/+"

    def needs(self, shard: int) -> str:
        """Filter of the NEED messages of one shard."""
        return f"{self.prefix}/need/{shard}/+"

    def broadcast(self, sha256: str) -> str:
        """DATA messages of one artifact for everybody who misses it; cloud to all, QoS 0."""
        return f"{self.prefix}/a/{sha256[:16]}/c"

    def announce(self, sha256: str) -> str:
        """ANNOUNCE messages of one artifact's broadcast; cloud to all, QoS 1."""
        return f"{self.prefix}/a/{sha256[:16]}/ann"

    def broadcasts(self, sha256: str) -> str:
        """Filter of an artifact's DATA and ANNOUNCE messages."""
        return f"{self.prefix}/a/{sha256[:16]}/+"

    def chunks(self, device: str) -> str:
        """DATA messages for one device; cloud to device, QoS 0."""
        return f"{self.prefix}/d/{device}/c"

    def state(self, device: str) -> str:
        """Presence and running digests; device to cloud, QoS 1, retained, with a will."""
        return f"{self.prefix}/d/{device}/state"

    def report(self, device: str) -> str:
        """Numbered reports; device to cloud, QoS 1."""
        return f"{self.prefix}/d/{device}/report"

    def ack(self, device: str) -> str:
        """Acknowledgement of reports; cloud to device, QoS 1."""
        return f"{self.prefix}/d/{device}/ack"

    def telemetry(self, device: str) -> str:
        """Counts and histograms; device to cloud, QoS 0."""
        return f"{self.prefix}/d/{device}/telemetry"

    @property
    def all_states(self) -> str:
        """Filter of every device's state."""
        return self.state("+")

    @property
    def all_reports(self) -> str:
        """Filter of every device's reports."""
        return self.report("+")

    @property
    def all_telemetry(self) -> str:
        """Filter of every device's telemetry."""
        return self.telemetry("+")

    def device_of(self, topic: str) -> str:
        """Return the device's id in one of its topics (the last level but one, or the last of a NEED).

        Raises:
            InputError: the topic is no device's.
        """
        levels = topic.removeprefix(self.prefix + "/").split("/")
        place = 2 if levels[0] == "need" else 1
        return check_level(levels[place] if place < len(levels) else "", "the device's name")
