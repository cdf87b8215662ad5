"""What pages of other origins may do with the doors, where the settings let any in."""

from __future__ import annotations

from typing import Any

# Pages may read what an answer says about itself.
_EXPOSED = (
    *("Inference-Artifact", "Inference-Confidence", "Inference-Degraded", "Inference-Fallback", "Inference-Model"),
    *("Inference-Origin", "Inference-Runtime", "Inference-Header-Content-Length", "Retry-After", "Server-Timing"),
    *("X-Request-Id", "traceparent"),
)
CORS: dict[str, Any] = {"allow_methods": ("GET", "POST"), "allow_headers": ("*",), "expose_headers": _EXPOSED}
