"""Holds TensorFlow for the engine `tensorflow`: `python -m toprope_shared.engines.tensorflow_child FD JSON`.

Loads one SavedModel, says what its serving signature takes and gives, and runs calls until the socket ends. What TensorFlow
prints goes to standard error.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from typing import Any

import msgspec
import numpy as np

from toprope_shared.engines.tensorflow_wire import Head, Open, receive, send
from toprope_shared.tensors import NUMPY_TYPES, Array, Tensors, TensorSpec

SIGNATURE = "serving_default"
TEXT_CHARS = 600
_NAMES = {dtype: name for name, dtype in NUMPY_TYPES.items()}


class Refusal(Exception):  # noqa: N818 - it is what is told
    """The SavedModel can't be served."""


def main(handle: int, request: Open) -> None:
    """Load, then answer every call."""
    sock = socket.socket(fileno=handle)
    threading.Thread(target=_end_with, args=(sock,), daemon=True).start()
    try:
        serve, head = _load(request)
    except Exception as error:  # what TensorFlow raises for a damaged folder depends on where it is damaged
        send(sock, Head(error=_told(error)))
        return
    send(sock, head)
    while True:
        try:
            _, inputs = receive(sock)
        except EOFError:
            return
        try:
            outputs, head = _run(serve, inputs), Head()
        except Exception as error:  # as above
            outputs, head = {}, Head(error=_told(error))
        send(sock, head, outputs)


def _end_with(sock: socket.socket) -> None:
    """End when the other side does, in the middle of a call too.

    The system's own signal for that (PR_SET_PDEATHSIG) hangs on the thread that started this process, and sessions are opened
    in threads that end.
    """
    gone = select.poll()
    gone.register(sock, 0)  # the end of both directions is always told
    gone.poll()
    os._exit(0)


def _load(request: Open) -> tuple[Any, Head]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(request.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    loaded = tf.saved_model.load(request.folder)
    if SIGNATURE not in loaded.signatures:
        have = ", ".join(loaded.signatures) or "none"
        raise Refusal(f"the SavedModel has no signature {SIGNATURE}; it has {have}")
    signature = loaded.signatures[SIGNATURE]
    kinds = {name: spec.dtype for name, spec in signature.structured_input_signature[1].items()}

    def serve(inputs: Tensors) -> dict[str, Array]:
        given = {name: tf.constant(array, kinds[name]) for name, array in inputs.items()}
        return {name: value.numpy() for name, value in signature(**given).items()}

    serve.keep = loaded  # type: ignore[attr-defined]  # the variables live as long as the object that was loaded
    inputs = tuple(_spec(name, spec) for name, spec in sorted(signature.structured_input_signature[1].items()))
    return serve, Head(
        inputs=inputs, outputs=tuple(_spec(name, spec) for name, spec in signature.structured_outputs.items())
    )


def _run(serve: Any, inputs: Tensors) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in serve(inputs).items()}


def _spec(name: str, spec: Any) -> TensorSpec:
    kind = _NAMES.get(np.dtype(spec.dtype.as_numpy_dtype))
    if kind is None:
        raise Refusal(f"the tensor {name!r} is {spec.dtype.name}, which can't be sent")
    if spec.shape.rank is None:
        raise Refusal(f"the tensor {name!r} has no rank; export the signature with shapes")
    return TensorSpec(name, kind, tuple(-1 if size is None else size for size in spec.shape.as_list()))


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:TEXT_CHARS] or type(error).__name__


if __name__ == "__main__":
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    main(int(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Open))
