"""Runs ONNX files that take or give bfloat16, which onnxruntime's numpy interface does not know.

Values of that type go in and come out as onnxruntime's own, over the memory of their two bytes an element; see
`tensors.BF16`. Source: `OrtValue.ortvalue_from_numpy_with_onnx_type`, onnxruntime 1.21.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from toprope_shared.errors import LoadError
from toprope_shared.tensors import BF16, Array, Tensors

TYPE = "tensor(bfloat16)"
_ELEMENT = 16  # Source: onnx.TensorProto.BFLOAT16


def takes_part(session: Any) -> bool:
    """Say whether a session of onnxruntime has an input or output of bfloat16."""
    return any(item.type == TYPE for item in (*session.get_inputs(), *session.get_outputs()))


class Bf16Session:
    """An onnxruntime session whose `run` takes and gives arrays of `tensors.BF16` too.

    Args:
        session: of onnxruntime.

    Raises:
        LoadError: this onnxruntime has no way for that.
    """

    def __init__(self, session: Any) -> None:
        if not hasattr(ort.OrtValue, "ortvalue_from_numpy_with_onnx_type"):
            raise LoadError(f"onnxruntime {ort.__version__} can't be given bfloat16; 1.21 can")
        self._session = session
        self._halves = {item.name for item in session.get_inputs() if item.type == TYPE}

    def get_inputs(self) -> Any:
        """Return what the session says of its inputs."""
        return self._session.get_inputs()

    def run(self, names: Sequence[str], inputs: Tensors) -> list[Array]:
        """Return the outputs of these names, as `onnxruntime.InferenceSession.run`."""
        given = {name: self._value(name, array) for name, array in inputs.items()}
        return [_array(value) for value in self._session.run_with_ort_values(names, given)]

    def _value(self, name: str, array: Array) -> Any:
        if name not in self._halves:
            return ort.OrtValue.ortvalue_from_numpy(array)
        bits = np.require(array.view(np.uint16), requirements=("C", "A"))  # the value shares it, and keeps it
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ELEMENT)


def _array(value: Any) -> Array:
    if value.element_type() != _ELEMENT:
        array: Array = value.numpy()
        return array
    copied = np.empty(value.shape(), BF16)
    ctypes.memmove(copied.ctypes.data, value.data_ptr(), copied.nbytes)
    return copied
