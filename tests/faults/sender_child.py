"""A sender as a process that can be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from toprope_cloud.sender_process import run
from toprope_cloud.service import CloudSettings

asyncio.run(run(CloudSettings(broker=f"mqtt://127.0.0.1:{sys.argv[1]}", topic_prefix="t"), Path(sys.argv[2])))
