"""A handler for TorchServe: its own opens an ONNX file and then calls the session as a function, which it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
from opened import from_bytes, opened


class Onnx:
    """Calls onnxruntime once for all requests of a batch."""

    def initialize(self, context: Any) -> None:
        """Open the file of the model's name."""
        self._run = opened(context.manifest["model"]["modelName"])

    def handle(self, requests: list[Any], context: Any) -> list[Any]:
        """Answer all requests."""
        rows = [_row(request) for request in requests]
        return [{"y": [row]} for row in self._run(np.stack(rows)).tolist()]


def _row(request: Any) -> Any:
    """Return one request's numbers: JSON comes as its fields or under `body`, bytes under `body`."""
    body = request.get("body", request)
    if isinstance(body, bytes | bytearray):
        return from_bytes(bytes(body))
    return np.asarray(body["x"][0], dtype=np.float32)
