"""The models as every peer opens them: the same onnxruntime over the same files; imported in each peer's own environment.

`BENCH_MODELS` names the folder of `NAME.onnx`, `BENCH_PORT` the port to listen on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

SHAPES: dict[str, tuple[int, ...]] = {"small": (64,), "heavy": (64,), "conv": (64,), "image": (3, 224, 224)}
NAMES = tuple(SHAPES)
MAX_BATCH = 64
BATCH_WAIT_S = 0.002
# Whose calls are so short that a thread, or a process for them alone, costs more than it gives.
SHORT = ("small", "image")


def port() -> int:
    """Return where to listen on 127.0.0.1."""
    return int(os.environ["BENCH_PORT"])


def opened(name: str, threads: int = 1) -> Callable[[Any], Any]:
    """Return a model as a function of numbers, [rows, ...] in any nesting, to float32 [rows, outputs]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    file = Path(os.environ["BENCH_MODELS"]) / f"{name}.onnx"
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    shape = (-1, *SHAPES[name])

    def run(numbers: Any) -> Any:
        return session.run(["y"], {"x": np.asarray(numbers, dtype=np.float32).reshape(shape)})[0]

    return run


def from_bytes(body: bytes) -> Any:
    """Return the numbers of a body that is a tensor's bytes and nothing else."""
    return np.frombuffer(body, dtype=np.float32)
