"""What the agent and the process that verifies its trust say to each other: frames of MessagePack on one socket.

The agent begins with a `Task`. The other asks it for metadata with `Wanted`, as often as it needs, each answered by `Given`;
its last word is `Found`.
"""

from __future__ import annotations

import socket
import struct

import msgspec

from toprope_shared.errors import LinkError
from toprope_shared.signed import Signed
from toprope_shared.verdicts import Floor, Verdict

MAX_FRAME_BYTES = 32 << 20  # a models metadata of the largest size that is taken, with every release in it
_LENGTH = struct.Struct("!I")


class Task(msgspec.Struct, frozen=True, tag=True):
    """What is to be verified.

    Attributes:
        folder: where the metadata is kept.
        kept: whether only what is on disk is to be verified again.
        now: what the machine's clock shows, seconds since 1970.
        floors: what the journal holds, by name.
        idle_s: seconds without another task after which the process ends.
    """

    folder: str
    bootstrap: bytes
    channel: str
    kept: bool
    now: float
    floors: dict[str, Floor]
    idle_s: float


class Wanted(msgspec.Struct, frozen=True, tag=True):
    """A metadata file that is needed; `version` is None for the newest."""

    role: str
    version: int | None


class Given(msgspec.Struct, frozen=True, tag=True):
    """A metadata file, or why it is not to be had; `exists` is False where the road says that there is none."""

    data: bytes = b""
    why: str = ""
    exists: bool = True


class Found(msgspec.Struct, frozen=True, tag=True):
    """The outcome, as `signed.Verified`."""

    verdict: Verdict
    reason: str
    floors: dict[str, Floor]
    signed: Signed | None


Message = Task | Wanted | Given | Found
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def send(sock: socket.socket, message: Message) -> None:
    """Send one message, within the socket's timeout.

    Raises:
        OSError: the other end has gone, or takes nothing.
    """
    data = msgspec.msgpack.encode(message)
    sock.sendall(_LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket) -> Message | None:
    """Return the next message; None when the other end has closed. Each read has the socket's timeout.

    Raises:
        LinkError: it is none of ours.
        OSError: nothing came in time.
    """
    head = _exactly(sock, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise LinkError(f"a message of {length} bytes, at most {MAX_FRAME_BYTES} are taken")
    data = _exactly(sock, length)
    if data is None:
        return None
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise LinkError(f"a message that can't be read: {error}") from error


def _exactly(sock: socket.socket, count: int) -> bytearray | None:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            return None
        view = view[got:]
    return data
