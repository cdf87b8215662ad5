"""What the engine `tensorflow` and the process that holds TensorFlow say to each other over a pair of sockets.

A frame is the length of its head (4 bytes, big endian), the head (JSON), and the tensors' bytes one after another. Neither side
needs TensorFlow to speak.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from typing import Annotated, Any

import msgspec
import numpy as np

from toprope_shared.tensors import NUMPY_TYPES, Array, Tensors, TensorSpec, datatype_of

MAX_HEAD = 1 << 20
MAX_CONTENT = 2 << 30  # a process that a file has taken over may claim anything
_LENGTH = struct.Struct(">I")


class Part(msgspec.Struct, frozen=True):
    """One tensor of a frame; text is a list of bytes in MessagePack."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    length: Annotated[int, msgspec.Meta(ge=0, le=MAX_CONTENT)]


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands before the tensors.

    Attributes:
        error: why there are none; empty when all is well.
        inputs, outputs: the signature's, in the answer to the opening.
        parts: the tensors that follow.
    """

    error: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parts: tuple[Part, ...] = ()


class Open(msgspec.Struct, frozen=True):
    """What the process is told on its command line: the SavedModel's folder, and the threads of one call."""

    folder: str
    threads: int = 1


def send(sock: socket.socket, head: Head, tensors: Tensors | None = None, *, deadline: float | None = None) -> None:
    """Send a frame.

    Args:
        sock: a socket of a pair.
        head: without parts; they are made here.
        tensors: what follows it.
        deadline: steady seconds; None waits for ever.

    Raises:
        TimeoutError: the other side has not taken it in time.
        OSError: the other side is gone.
    """
    parts, contents = [], []
    for name, array in (tensors or {}).items():
        content = _content(array)
        parts.append(Part(name, datatype_of(array), array.shape, len(content)))
        contents.append(content)
    data = msgspec.json.encode(msgspec.structs.replace(head, parts=tuple(parts)))
    for piece in (_LENGTH.pack(len(data)) + data, *contents):
        _patient(sock, deadline)
        sock.sendall(piece)


def receive(sock: socket.socket, *, deadline: float | None = None) -> tuple[Head, dict[str, Array]]:
    """Return the next frame.

    Raises:
        TimeoutError: it has not come in time.
        EOFError: the other side is gone.
        ValueError: it is no frame.
    """
    length = _LENGTH.unpack(_exactly(sock, _LENGTH.size, deadline))[0]
    if length > MAX_HEAD:
        raise ValueError(f"a frame's head has {length} bytes")
    head = msgspec.json.decode(_exactly(sock, length, deadline), type=Head)
    return head, {part.name: _array(part, _exactly(sock, part.length, deadline)) for part in head.parts}


def _content(array: Array) -> Any:
    if array.dtype.kind in "SUO":
        return msgspec.msgpack.encode(
            [one if isinstance(one, bytes) else str(one).encode() for one in array.ravel().tolist()]
        )
    plain = np.ascontiguousarray(array)
    return plain.reshape(-1).view(np.uint8).data if plain.size else b""


def _array(part: Part, content: bytearray) -> Array:
    dtype = NUMPY_TYPES[part.datatype]
    if part.datatype == "BYTES":
        made = np.empty(math.prod(part.shape), dtype)
        made[:] = msgspec.msgpack.decode(content, type=list[bytes])
        return made.reshape(part.shape)
    return np.frombuffer(content, dtype).reshape(part.shape)


def _exactly(sock: socket.socket, length: int, deadline: float | None) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        _patient(sock, deadline)
        count = sock.recv_into(view)
        if not count:
            raise EOFError("the other side is gone")
        view = view[count:]
    return data


def _patient(sock: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        sock.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)
