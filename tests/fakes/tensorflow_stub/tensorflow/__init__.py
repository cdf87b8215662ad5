"""Stands in for TensorFlow in the engine's child process: starts at once, and crashes or hangs when an input says so."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

CRASH, HANG, FAIL = -1.0, -2.0, -3.0


def constant(value: Any, dtype: Any) -> Any:
    return np.asarray(value, dtype.as_numpy_dtype)


def _tensor(name: str) -> Any:
    shape = SimpleNamespace(rank=2, as_list=lambda: [None, 1])
    return SimpleNamespace(dtype=SimpleNamespace(as_numpy_dtype=np.float32, name="float32"), shape=shape, name=name)


class _Doubles:
    def __init__(self) -> None:
        self.structured_input_signature = ((), {"x": _tensor("x")})
        self.structured_outputs = {"y": _tensor("y")}

    def __call__(self, x: Any) -> dict[str, Any]:
        first = float(x.ravel()[0]) if x.size else 0.0
        if first == CRASH:
            os.kill(os.getpid(), signal.SIGSEGV)
        if first == HANG:
            time.sleep(3600)
        if first == FAIL:
            raise ValueError("the graph does not like it")
        value = 2 * x
        return {"y": SimpleNamespace(numpy=lambda: value)}


def _load(folder: str) -> Any:
    words = (Path(folder) / "saved_model.pb").read_text()
    if words == "crash":
        os.kill(os.getpid(), signal.SIGABRT)
    if words == "hang":
        time.sleep(3600)
    if words == "damaged":
        raise OSError("the file is damaged")
    return SimpleNamespace(signatures={} if words == "bare" else {"serving_default": _Doubles()})


saved_model = SimpleNamespace(load=_load)
config = SimpleNamespace(
    threading=SimpleNamespace(
        set_intra_op_parallelism_threads=lambda threads: None, set_inter_op_parallelism_threads=lambda threads: None
    )
)
