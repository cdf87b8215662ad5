"""Turns a PyTorch program that `torch.export` saved (.pt2) into an ONNX file, through PyTorch's own exporter."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from toprope_shared.errors import InputError
from toprope_training.canonical import canonical
from toprope_training.importing.reading import Export, Exported
from toprope_training.recipe import Progress


def run(request: Export, progress: Progress) -> Exported:
    """Convert the program.

    Raises:
        InputError: PyTorch is not installed, or the program can't be read or converted.
    """
    for module in ("torch", "onnxscript"):
        if importlib.util.find_spec(module) is None:
            raise InputError(f"to import PyTorch programs, pip install 'toprope-training[torch]'; {module} is missing")
    progress("Starting PyTorch", 0, 0)
    import torch

    try:
        program = torch.export.load(request.file)
    except Exception as error:  # torch raises RuntimeError, ValueError, ... for a damaged archive
        raise InputError(f"torch.export can't load it: {' '.join(str(error).split())[:300]}") from error
    progress("Converting it to ONNX", 0, 0)
    try:
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:  # the exporter has a dozen errors of its own
        text = " ".join(str(error).split())[:300]
        raise InputError(f"PyTorch can't export the program to ONNX: {text}") from error
    Path(request.target).write_bytes(canonical(converted.model_proto).SerializeToString(deterministic=True))
    return Exported()
