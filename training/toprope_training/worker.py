"""The child process of a release: does the jobs on its standard input and reports on a pipe.

Started with `python -m` and the pipe's number. It knows the steps by name only and imports a step's libraries when the step
comes, so that no process holds TensorFlow and tflite-runtime at once unless it is asked for both. What is not one of our own
errors ends the process with its traceback on standard error, which is the log.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import sys
from typing import BinaryIO, NamedTuple

import msgspec

from toprope_shared.errors import InputError, TopropeError
from toprope_training import steps
from toprope_training.importing import reading


class _Step(NamedTuple):
    module: str
    request: type[msgspec.Struct]


# Each module has a function `run(request, progress)` that returns the step's result.
STEPS = {
    "train": _Step("toprope_training.train", steps.Train),
    "convert": _Step("toprope_training.convert", steps.Convert),
    "quantize": _Step("toprope_training.quantize", steps.Quantize),
    "evaluate": _Step("toprope_training.evaluate", steps.Evaluate),
    "read tensorflow": _Step("toprope_training.importing.from_tensorflow", reading.Read),
    "read onnx": _Step("toprope_training.importing.from_onnx", reading.Read),
    "read tflite": _Step("toprope_training.importing.from_tflite", reading.Read),
    "export torch": _Step("toprope_training.importing.from_torch", reading.Export),
    "export sklearn": _Step("toprope_training.importing.from_sklearn", reading.Export),
}


def main() -> None:
    """Do every job of standard input in turn."""
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO)
    with os.fdopen(int(sys.argv[1]), "wb") as pipe:
        try:
            for line in sys.stdin.buffer:
                _do(msgspec.json.decode(line, type=steps.Job), pipe)
        except TopropeError as error:
            _write(pipe, steps.Refusal(str(error), isinstance(error, InputError)))


def _do(job: steps.Job, pipe: BinaryIO) -> None:
    def progress(text: str, done: int = 0, total: int = 0) -> None:
        _write(pipe, steps.Told(text, done, total))

    step = STEPS[job.step]
    request = msgspec.json.decode(job.request, type=step.request)
    result = importlib.import_module(step.module).run(request, progress)
    _write(pipe, steps.Answer(msgspec.Raw(msgspec.json.encode(result))))


def _write(pipe: BinaryIO, line: steps.Line) -> None:
    pipe.write(msgspec.json.encode(line) + b"\n")
    pipe.flush()


if __name__ == "__main__":
    main()
