"""Reads binary requests whose JSON head came before: a client with tensors of one shape sends the same head again and again.

What the thorough reader of `binary` made of a head is kept by its very bytes; the tensors behind it are then a view each. Not
for text and booleans, whose bytes must be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from toprope_shared.inference import InferenceRequest
from toprope_shared.tensors import Array

MOST = 256
MAX_BYTES = 1024
_W = TypeVar("_W")


class Layout(NamedTuple):
    """Where the bytes of one tensor stand, and what they are."""

    name: str
    dtype: np.dtype[np.generic]
    elements: int
    shape: tuple[int, ...]


class Known(NamedTuple, Generic[_W]):
    """What a head means: the tensors behind it and their bytes, the request without them, and how its outputs are wanted."""

    layouts: tuple[Layout, ...]
    size: int
    request: InferenceRequest
    wanted: _W


class QuickBinary(Generic[_W]):
    """Requests by the bytes of their heads, not many at a time; `_W` is how their outputs are wanted."""

    def __init__(self) -> None:
        self._known: dict[bytes, Known[_W]] = {}

    def find(self, body: bytes, length: int) -> Known[_W] | None:
        """Return what the head of a body means, if it came before and as many bytes are behind it as it says."""
        known = self._known.get(body[:length])
        return known if known is not None and len(body) - length == known.size else None

    def read(self, body: bytes, length: int, *, model: str, version: str | None) -> tuple[InferenceRequest, _W] | None:
        """Return a request and how its outputs are wanted; None where it must be looked at thoroughly.

        Args:
            body: uncompressed.
            length: bytes of its head.
            model, version: of the path.
        """
        known = self.find(body, length)
        if known is None:
            return None
        arrays: dict[str, Array] = {}
        at = length
        for layout in known.layouts:
            array: Array = np.frombuffer(body, layout.dtype, layout.elements, at)
            at += array.nbytes
            arrays[layout.name] = (array if array.flags.aligned else array.copy()).reshape(layout.shape)
        old = known.request
        return InferenceRequest(model, arrays, version, old.outputs, old.id, old.parameters), known.wanted

    def keep(self, head: bytes, request: InferenceRequest, sizes: Mapping[str, object], wanted: _W) -> None:
        """Remember what the thorough reader made of a head.

        Args:
            head: the JSON.
            request: what it made of it.
            sizes: how many bytes of each input stood behind the head, as it says; None is in it.
            wanted: how its outputs are wanted.
        """
        if len(head) > MAX_BYTES or not request.inputs:
            return
        layouts = []
        for name, array in request.inputs.items():
            if array.dtype.kind not in "fiu" or sizes[name] != array.nbytes or not array.size:
                return
            layouts.append(Layout(name, array.dtype.newbyteorder("<"), math.prod(array.shape), array.shape))
        if len(self._known) >= MOST:
            self._known.clear()
        size = sum(array.nbytes for array in request.inputs.values())
        bare = InferenceRequest(request.model, {}, None, request.outputs, request.id, request.parameters)
        self._known[head] = Known(tuple(layouts), size, bare, wanted)
