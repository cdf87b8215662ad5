"""One table of everything that parses bytes from outside: hypothesis (`test_parsers.py`) and atheris (`run.py`) both read it.

A new parser is added in one place: a `Target` in `on_mqtt.py`, `on_http.py`, `on_sockets.py` or `on_disk.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """One parser.

    Attributes:
        name: as `make fuzz ONLY=...` takes it.
        parse: reads the bytes; whatever else it needs is bound to it.
        allowed: the errors that its docstring names; any other is a defect.
        seeds: whole, good inputs that are then damaged; together with the hostile ones below they are the first corpus.
        hostile: inputs that once were, or could be, trouble; each is run as it is.
        covers: the public functions of `toprope_shared` that it runs, as `module.Class.function`.
        factor: how many bytes of memory a byte of input may cost at most, beside `fixed`.
        fixed: bytes that it may take for any input.
        quick: whether an example costs well under a millisecond; what needs a disk, keys or a socket gets fewer of them.
    """

    name: str
    parse: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    hostile: tuple[bytes, ...] = ()
    covers: tuple[str, ...] = ()
    factor: int = 64
    fixed: int = 2 * MIB
    quick: bool = True

    def run(self, data: bytes) -> bool:
        """Parse the bytes; say whether they were taken. Every other error comes out as it is."""
        try:
            self.parse(data)
        except self.allowed:
            return False
        return True


@cache
def targets() -> dict[str, Target]:
    """Return every target by its name."""
    from tests.fuzz import on_disk, on_http, on_mqtt, on_sockets

    found = [*on_mqtt.targets(), *on_http.targets(), *on_disk.targets(), *on_sockets.targets()]
    by_name = {target.name: target for target in found}
    assert len(by_name) == len(found), "two targets have one name"
    return by_name


def nested(depth: int, opening: bytes = b"[") -> bytes:
    """Return JSON that opens lists or objects and never closes them."""
    return opening * depth


# Run on every target as they are.
ANYWHERE = (
    b"",
    b"\0",
    b"\0" * 4096,
    b"\xff" * 4096,
    b"{}",
    b"[]",
    b"null",
    b'"\\ud800"',
    b'{"\xff":1}',
    b"9" * 5000,
    b"1" + b"0" * 400,
    nested(100_000),
    nested(20_000, b'{"x":'),
    b"[NaN," * 1000,
    "é²\u0663\u2028".encode(),
)
