"""Reads MQTT 3.1.1 packets out of recorded bytes. Source: OASIS MQTT 3.1.1, chapters 2 and 3."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

CONNECT, PUBLISH, SUBSCRIBE = 1, 3, 8


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet; what does not apply to its kind is empty."""

    kind: int
    length: int
    topics: tuple[str, ...] = ()
    payload: int = 0
    qos: int = 0
    retain: bool = False
    client_id: str = ""


def packets(data: bytes) -> Iterator[Packet]:
    """Yield the whole packets of one direction of one connection."""
    at = 0
    while at < len(data):
        size, shift, head = 0, 0, at + 1
        while head < len(data):
            size |= (data[head] & 0x7F) << shift
            shift += 7
            head += 1
            if not data[head - 1] & 0x80:
                break
        if head + size > len(data):
            return
        yield _packet(data[at], data[head : head + size], head + size - at)
        at = head + size


def _packet(first: int, body: bytes, length: int) -> Packet:
    kind = first >> 4
    if kind == PUBLISH:
        topic, rest = _text(body)
        qos = first >> 1 & 3
        return Packet(kind, length, (topic,), len(rest) - (2 if qos else 0), qos, bool(first & 1))
    if kind == SUBSCRIBE:
        filters, rest, qos = [], body[2:], 0
        while rest:
            one, rest = _text(rest)
            filters.append(one)
            qos, rest = max(qos, rest[0]), rest[1:]
        return Packet(kind, length, tuple(filters), qos=qos)
    if kind == CONNECT:
        return Packet(kind, length, client_id=_text(body[10:])[0])
    return Packet(kind, length)


def _text(data: bytes) -> tuple[str, bytes]:
    (size,) = struct.unpack_from(">H", data)
    return data[2 : 2 + size].decode(), data[2 + size :]
