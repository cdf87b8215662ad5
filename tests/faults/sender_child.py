"""A sender as a process that can be killed."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from toprope_cloud.sender_process import run
from toprope_shared.profiles import DEFAULT


@dataclass(frozen=True, slots=True)
class Settings:
    """What a sender reads of the cloud's settings; the whole of them would load the whole service first."""

    broker: str
    broker_profile: str = DEFAULT
    topic_prefix: str = "t"
    sender_shards: tuple[int, ...] = ()
    broadcast_devices: int = 2
    broadcast_rate: int = 16 << 20


asyncio.run(run(Settings(f"mqtt://127.0.0.1:{sys.argv[1]}"), Path(sys.argv[2])))
