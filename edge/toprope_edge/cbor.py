"""As much of CBOR (RFC 8949) as sensors speak: numbers, text, bytes, lists, maps, true, false and null.

Lengths are held against what is there before anything is made, so a message costs memory in proportion to its bytes. Tags are
refused, but for the one that only says "this is CBOR". No I/O.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from toprope_shared.errors import RequestError
from toprope_shared.tensors import Array, numbers_of

MAX_DEPTH = 32
# Source: RFC 8949, section 3: major types, and the low five bits of an initial byte.
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _LIST, _MAP, _TAG, _OTHER = range(8)
_INDEFINITE = 31
_BREAK = 0xFF
_SELF_DESCRIBED = 55799
_SIMPLE = {20: False, 21: True, 22: None}
_FLOATS = {25: struct.Struct(">e"), 26: struct.Struct(">f"), 27: struct.Struct(">d")}
_FLOAT_HEADS = {2: 0xF9, 4: 0xFA, 8: 0xFB}


def loads(data: bytes) -> Any:
    """Read one data item.

    Raises:
        RequestError: it is not well-formed, of a kind that is not taken, nested too deep, or something follows it.
    """
    reader = _Reader(data)
    value = reader.item(0)
    if reader.at != len(data):
        raise RequestError(f"the message is not CBOR: {len(data) - reader.at} bytes follow its end")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def item(self, depth: int) -> Any:
        """Read the next item."""
        if depth > MAX_DEPTH:
            raise RequestError(f"the CBOR message is nested deeper than {MAX_DEPTH} levels")
        initial = self._take(1)[0]
        major, low = initial >> 5, initial & 31
        if major == _OTHER:
            return self._other(low)
        if major == _TAG:
            return self._tagged(self._number(low), depth)
        if low == _INDEFINITE:
            return self._unended(major, depth)
        number = self._number(low)
        if major == _UNSIGNED:
            return number
        if major == _NEGATIVE:
            return -1 - number
        if major in (_BYTES, _TEXT):
            return self._string(major, number)
        return self._list(number, depth) if major == _LIST else self._map(number, depth)

    def _take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise RequestError(f"the message is not CBOR: it ends at byte {len(self.data)}, in the middle of a value")
        self.at += size
        return self.data[self.at - size : self.at]

    def _number(self, low: int) -> int:
        if low < 24:
            return low
        if low > 27:
            raise RequestError(f"the message is not CBOR: a length of kind {low} before byte {self.at}")
        return int.from_bytes(self._take(1 << (low - 24)), "big")

    def _string(self, major: int, size: int) -> bytes | str:
        data = self._take(size)
        if major == _BYTES:
            return data
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise RequestError(f"the message is not CBOR: a text before byte {self.at} is not UTF-8") from error

    def _list(self, count: int, depth: int) -> list[Any]:
        if count > len(self.data) - self.at:  # an item has a byte at least
            raise RequestError(f"the CBOR message claims a list of {count} and has {len(self.data) - self.at} bytes left")
        return [self.item(depth + 1) for _ in range(count)]

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        if count > (len(self.data) - self.at) // 2:
            raise RequestError(f"the CBOR message claims a map of {count} and has {len(self.data) - self.at} bytes left")
        found: dict[str, Any] = {}
        for _ in range(count):
            self._pair(found, depth)
        return found

    def _pair(self, found: dict[str, Any], depth: int) -> None:
        key = self.item(depth + 1)
        if type(key) is int:  # constrained devices number their keys
            key = str(key)
        if type(key) is not str or key in found:
            what = "twice" if type(key) is str else "that is neither text nor a whole number"
            raise RequestError(f"a map of the CBOR message has a key {what}: {str(key)[:32]!r}")
        found[key] = self.item(depth + 1)

    def _unended(self, major: int, depth: int) -> Any:
        """Read a string in pieces, a list or a map whose length was not known when it was begun."""
        if major == _LIST:
            items = []
            while not self._over():
                items.append(self.item(depth + 1))
            return items
        if major == _MAP:
            found: dict[str, Any] = {}
            while not self._over():
                self._pair(found, depth)
            return found
        if major not in (_BYTES, _TEXT):
            raise RequestError(f"the message is not CBOR: a number without end before byte {self.at}")
        pieces = []
        while not self._over():
            initial = self._take(1)[0]
            if initial >> 5 != major or initial & 31 == _INDEFINITE:
                raise RequestError(f"the message is not CBOR: a string has a piece of another kind before byte {self.at}")
            pieces.append(self._string(major, self._number(initial & 31)))
        return b"".join(pieces) if major == _BYTES else "".join(pieces)  # type: ignore[arg-type]

    def _over(self) -> bool:
        if self.at < len(self.data) and self.data[self.at] == _BREAK:
            self.at += 1
            return True
        return False

    def _tagged(self, tag: int, depth: int) -> Any:
        if tag != _SELF_DESCRIBED:
            raise RequestError(f"the CBOR message has tag {tag}; write numbers, text, bytes, lists and maps without tags")
        return self.item(depth + 1)

    def _other(self, low: int) -> Any:
        if low in _FLOATS:
            form = _FLOATS[low]
            return form.unpack(self._take(form.size))[0]
        if low in _SIMPLE:
            return _SIMPLE[low]
        raise RequestError(f"the CBOR message has a value of kind {low}, which stands for no number, text or list")


def dumps(value: Any) -> bytes:
    """Return a value as CBOR: what `loads` gives, and arrays as nested lists with floats in their own width.

    Raises:
        RequestError: an array holds something that has no form here.
    """
    out: list[bytes] = []
    _write(value, out)
    return b"".join(out)


def _write(value: Any, out: list[bytes]) -> None:
    if value is None or value is True or value is False:
        out.append({None: b"\xf6", True: b"\xf5", False: b"\xf4"}[value])
    elif isinstance(value, int):
        out.append(_head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value))
    elif isinstance(value, float):
        out.append(b"\xfb" + _FLOATS[27].pack(value))
    elif isinstance(value, str):
        data = value.encode(errors="backslashreplace")
        out += [_head(_TEXT, len(data)), data]
    elif isinstance(value, bytes):
        out += [_head(_BYTES, len(value)), value]
    elif isinstance(value, np.ndarray):
        _write_array(value, out)
    elif isinstance(value, dict):
        out.append(_head(_MAP, len(value)))
        for key, one in value.items():
            _write(key, out)
            _write(one, out)
    elif isinstance(value, list | tuple):
        out.append(_head(_LIST, len(value)))
        for one in value:
            _write(one, out)
    else:
        raise RequestError(f"a value of type {type(value).__name__} has no form in CBOR here")


def _write_array(array: Array, out: list[bytes]) -> None:
    array = numbers_of(array)
    if array.dtype.kind != "f":
        _write(array.tolist(), out)
    elif array.ndim == 0:
        out.append(_floats(array.reshape(1)))
    elif array.ndim == 1:
        out += [_head(_LIST, len(array)), _floats(array)]
    else:
        out.append(_head(_LIST, len(array)))
        for row in array:
            _write_array(row, out)


def _floats(array: Array) -> bytes:
    """Return floats one after the other, each behind its initial byte."""
    size = array.dtype.itemsize
    items = np.empty(len(array), [("head", "u1"), ("value", f">f{size}")])
    items["head"], items["value"] = _FLOAT_HEADS[size], array
    return items.tobytes()


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    low = max(0, math.ceil(math.log2((number.bit_length() + 7) // 8)))
    if low > 3:
        raise RequestError(f"{number} is too large for CBOR without tags")
    return bytes([major << 5 | 24 + low]) + number.to_bytes(1 << low, "big")
