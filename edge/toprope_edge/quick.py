"""`toprope edge run` as it is started on a device: see `toprope_shared.quick`. The imports stand inside the command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from toprope_shared.quick import Command, Given


def run(given: Given) -> None:
    """Run the agent until it is stopped.

    Args:
        given: the command's options by name; None, or not there, is not given.
    """
    from toprope_edge import agent, workers
    from toprope_edge.settings import EdgeSettings
    from toprope_edge.watchdog import Notifier
    from toprope_shared.cli import setup_logging
    from toprope_shared.serving import app as serving
    from toprope_shared.settings import home, load

    flags: dict[str, Any] = {name.replace("-", "_"): value for name, value in given.items()}
    file, flags["broker_profile"] = flags.pop("settings", None), flags.pop("profile", None)
    for name in ("engines", "models"):
        flags[name] = flags[name].split(",") if flags.get(name) else None
    settings = load(EdgeSettings, "edge", flags, file=Path(file) if file else None)
    setup_logging(settings.log_level)
    serving.run(agent.run(settings, home(), Notifier.of(os.environ)))
    workers.leave_stuck_threads(0)


COMMANDS = {
    "run": Command(
        {
            "device": str,
            "host": str,
            "port": int,
            "engines": str,
            "models": str,
            "broker": str,
            "cloud": str,
            "channel": str,
            "enrolment": str,
            "state": str,
            "probation-calls": int,
            "probation-seconds": float,
            "profile": str,
            "log-level": str,
            "settings": str,
        },
        run,
    )
}
