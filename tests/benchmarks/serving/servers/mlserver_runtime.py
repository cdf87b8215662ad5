"""A model of MLServer's: it has no runtime for ONNX of its own."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from opened import opened


class Onnx(MLModel):  # type: ignore[misc]
    """Calls onnxruntime."""

    async def load(self) -> bool:
        """Open the file of the model's name."""
        self._run = opened(self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request, which may be a batch that MLServer gathered."""
        y = self._run(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=[NumpyCodec.encode_output("y", y)])
