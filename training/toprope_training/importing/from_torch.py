"""Turns a PyTorch program that `torch.export` saved (.pt2) into an ONNX file, through PyTorch's own exporter."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from toprope_shared.errors import InputError
from toprope_training.canonical import canonical
from toprope_training.importing.reading import Export, Exported
from toprope_training.recipe import Progress

CLOSE = 1e-3


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
    data = canonical(converted.model_proto).SerializeToString(deterministic=True)
    progress("Holding it against the program", 0, 0)
    _hold(program, data)
    Path(request.target).write_bytes(data)
    return Exported()


def _hold(program: Any, data: bytes) -> None:
    """Hold the ONNX file against the program itself on the example inputs that travel with it."""
    import onnxruntime
    import torch

    arguments, named = program.example_inputs or ((), {})
    if not arguments or named:
        return  # nothing to hold it against; the examples of the import are run on the ONNX file
    with torch.no_grad():
        wanted = program.module()(*arguments)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    got = session.run(None, {name: value.numpy() for name, value in zip(names, arguments, strict=True)})
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(wanted) if isinstance(leaf, torch.Tensor)]
    if len(leaves) != len(got) or not all(
        np.allclose(one.numpy(), other, rtol=CLOSE, atol=CLOSE) for one, other in zip(leaves, got, strict=True)
    ):
        raise InputError("the ONNX file that PyTorch's exporter makes does not give the program's own outputs")
