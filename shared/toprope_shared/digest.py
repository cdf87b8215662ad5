"""SHA-256 of bytes and files, as lower-case hex; the name of everything that toprope stores or sends."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_HEX = re.compile(r"[0-9a-f]{64}")


def sha256(data: bytes | memoryview) -> str:
    """Return the SHA-256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits, reading 1 MiB at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_sha256(text: str) -> bool:
    """Say whether `text` is 64 lower-case hex digits, and so safe as a file's name."""
    return _HEX.fullmatch(text) is not None
