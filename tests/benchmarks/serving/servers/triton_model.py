"""One model of Triton's Python back end: it calls onnxruntime once for all requests of a batch."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from opened import opened


class TritonPythonModel:
    """Found by Triton by this name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model of the folder's name."""
        threads = int(json.loads(args["model_config"])["parameters"]["threads"]["string_value"])
        self.run = opened(args["model_name"], threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests."""
        rows = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        answers = self.run(rows[0] if len(rows) == 1 else np.concatenate(rows))
        ends = np.cumsum([len(row) for row in rows])[:-1]
        parts = np.split(answers, ends) if len(rows) > 1 else [answers]
        return [triton.InferenceResponse([triton.Tensor("y", part)]) for part in parts]
