"""Finds out what kind of model a file or folder is, from its first bytes and never from its name alone."""

from __future__ import annotations

import zipfile
from enum import StrEnum
from pathlib import Path

from toprope_shared.errors import InputError
from toprope_training import tflite_facts

KNOWN = "Keras .keras or .h5, a SavedModel folder, ONNX, TFLite, PyTorch .pt2, scikit-learn .pkl or .joblib"
_HEAD_BYTES = 512
_HDF5 = b"\x89HDF\r\n\x1a\n"
_PICKLE = b"\x80"
_LFS = b"version https://git-lfs"
# The first field of an ONNX ModelProto is ir_version: field 1, a varint.
_ONNX = b"\x08"


class Kind(StrEnum):
    """What a model was saved as."""

    KERAS = "keras"
    SAVED_MODEL = "saved_model"
    ONNX = "onnx"
    TFLITE = "tflite"
    TORCH = "torch"
    SKLEARN = "sklearn"


def detect(path: Path) -> Kind:
    """Return the kind of a model.

    Raises:
        InputError: there is none, or it is nothing that can be imported; the text says what it looks like instead.
    """
    if not path.exists():
        raise InputError(f"there is no {path}")
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return Kind.SAVED_MODEL
        raise InputError(f"{path} is a directory without a saved_model.pb, so it is no SavedModel; name the model's file")
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise InputError(f"{path} is empty (0 bytes); get the file again")
    return _by_content(path, head)


def _by_content(path: Path, head: bytes) -> Kind:
    if head[4:8] == tflite_facts.IDENTIFIER:
        return Kind.TFLITE
    if zipfile.is_zipfile(path):
        return _zipped(path)
    if head.startswith(_HDF5):
        return Kind.KERAS
    if head.startswith(_PICKLE) or path.suffix in (".joblib", ".pkl", ".pickle"):
        return Kind.SKLEARN
    if head.lstrip()[:1] == b"<":
        raise InputError(f"{path} is a web page or XML, not a model; a download that failed looks like this: get it again")
    if head.startswith(_LFS):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull")
    if path.suffix == ".tflite":
        raise InputError(f"{path} is not a TFLite file, or its start is damaged: the mark TFL3 is missing at byte 4")
    if path.suffix == ".onnx" or head.startswith(_ONNX):
        return Kind.ONNX
    raise InputError(f"{path} is no model that is known here; known are {KNOWN}")


def _zipped(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path} is a damaged archive: {error}; get it again") from error
    ends = {name.rpartition("/")[2] for name in names}
    if {"config.json", "model.weights.h5"} <= ends:
        return Kind.KERAS
    if "archive_format" in ends or "serialized_exported_program.json" in ends:
        return Kind.TORCH
    if "data.pkl" in ends:
        raise InputError(
            f"{path} is a PyTorch pickle (weights or TorchScript) and holds no graph that can be converted; "
            "save the model with torch.export.save(torch.export.export(model, example), 'model.pt2')"
        )
    raise InputError(f"{path} is an archive but no model that is known here; known are {KNOWN}")
