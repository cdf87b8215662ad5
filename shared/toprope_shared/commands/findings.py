"""What the doctor finds: values, and the way in for the rooms that look at more. Imports nothing that is slow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

GROUP = "toprope.checks"


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warn"
    ERROR = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor.

    Attributes:
        about: what was looked at, in one word; a room's finding about something stands for the general one.
        level: how it is.
        text: what was found.
        advice: what to do about it; empty where there is nothing to do.
    """

    about: str
    level: Level
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the doctor was asked to look at; None is what the settings say.

    Attributes:
        device, settings: whose device, and another toprope.toml.
        broker, cloud, agent: addresses.
    """

    device: str | None = None
    settings: Path | None = None
    broker: str | None = None
    cloud: str | None = None
    agent: str | None = None


# What a room offers in the entry-point group `GROUP`.
Check = Callable[[Asked], list[Finding]]
