"""KServe's ModelServer with a model class of its documentation's kind; it answers the paths of both protocols."""

from __future__ import annotations

from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from opened import NAMES, opened, port


class Onnx(Model):  # type: ignore[misc]
    """Calls onnxruntime."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._run = opened(name)
        self.ready = True

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer a request of either protocol."""
        if not isinstance(payload, InferRequest):
            return {"predictions": self._run(payload["instances"]).tolist()}
        y = self._run(payload.inputs[0].as_numpy())
        output = InferOutput(name="y", shape=list(y.shape), datatype="FP32")
        output.set_data_from_numpy(y, binary_data=bool(payload.use_binary_outputs))
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    server = ModelServer(http_port=port(), enable_grpc=False, workers=1, enable_latency_logging=False)
    server.start([Onnx(name) for name in NAMES])
