"""The agent on the device: fetches, verifies, tries out and runs models, and falls back to the cloud.

`toprope_edge.connect()` is how a program on the device asks it. It is imported when it is first used, so that the agent's own
parts cost nothing to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toprope_edge.local_client import Answer, Client, connect

__all__ = ["Answer", "Client", "connect"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from toprope_edge import local_client

    return getattr(local_client, name)
