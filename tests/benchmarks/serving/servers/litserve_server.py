"""LitServe: an API a model, one worker each. It reads the annotations of its hooks as types, not as texts."""

from typing import Any

import litserve
import numpy as np
from fastapi import Request, Response
from opened import BATCH_WAIT_S, MAX_BATCH, NAMES, opened, port


class Onnx(litserve.LitAPI):  # type: ignore[misc]
    """Calls onnxruntime."""

    def setup(self, device: str) -> None:
        """Open the file of the path's name, in the worker."""
        self._run = opened(self.api_path.strip("/"))

    def decode_request(self, request: Request) -> Any:
        """Return one row; what comes here is the parsed JSON."""
        return np.asarray(request["x"][0], dtype=np.float32)

    def predict(self, x: Any) -> Any:
        """Answer one row, or the rows that LitServe stacked."""
        return self._run(x)

    def encode_response(self, output: Any) -> Response:
        """Return one row as what becomes JSON."""
        return {"y": np.atleast_2d(output).tolist()}  # type: ignore[return-value]


def main() -> None:
    """Serve every model."""
    batched = {"max_batch_size": MAX_BATCH, "batch_timeout": BATCH_WAIT_S}
    apis = [Onnx(api_path=f"/{name}", **(batched if name == "heavy" else {})) for name in NAMES]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port(), generate_client_file=False, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
