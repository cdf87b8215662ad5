"""Named arrays on disk and their digests: the same arrays always give the same bytes and the same digest.

`numpy.savez` stamps every member with the same date (1980-01-01), so its files are deterministic as long as the order of the
names is; here they are sorted.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np

from toprope_shared.errors import InputError
from toprope_shared.tensors import Array, Tensors

# What zipfile and numpy raise for altered bytes: which one depends on which byte it is (encryption and compression flags
# give RuntimeError and NotImplementedError).
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, TypeError, zipfile.BadZipFile, zlib.error)


def digest(arrays: Tensors) -> str:
    """Return the SHA-256 over names, types, shapes and bytes, in the order of the names."""
    whole = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        whole.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()


def save(path: Path, arrays: Tensors) -> None:
    """Write the arrays as `.npz`, uncompressed."""
    ordered: dict[str, Array] = {name: np.asarray(arrays[name]) for name in sorted(arrays)}
    with path.open("wb") as file:
        np.savez(file, **ordered)


def load(path: Path) -> dict[str, Array]:
    """Read all arrays of a `.npz` file; pickled objects are refused.

    Raises:
        InputError: the file is missing, altered or no such file.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except UNREADABLE as error:
        raise InputError(f"{path} can't be read as an .npz file: {error}") from error


def prefixed(prefix: str, arrays: Tensors) -> dict[str, Array]:
    """Return the arrays under `<prefix>.<name>`."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def without(prefix: str, arrays: Tensors) -> dict[str, Array]:
    """Return the arrays that stand under `<prefix>.<name>`, by name."""
    start = len(prefix) + 1
    return {name[start:]: array for name, array in arrays.items() if name.startswith(f"{prefix}.")}


def spread(rows: int, wanted: int) -> Array:
    """Return at most `wanted` row numbers, evenly spread over `rows` rows."""
    return np.unique(np.linspace(0, rows - 1, num=min(rows, wanted)).round().astype(np.int64))
