"""What an engine is, and which of them this machine has.

An engine is imported only when it is asked for: a device with one engine never pays for the others.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from toprope_shared.errors import InputError
from toprope_shared.manifest import Format
from toprope_shared.tensors import Array, Tensors, TensorSpec


class Session(Protocol):
    """One opened variant. Safe to call from several threads."""

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Return the outputs by the manifest's names, in the manifest's datatypes.

        Args:
            inputs: arrays that fit the manifest's input specs, batch first.

        Raises:
            EngineError: the engine refused the inputs or failed while it ran.
        """

    def close(self) -> None:
        """Give the memory back; calls that run are finished first by their threads."""


class Engine(Protocol):
    """Opens variants of one format."""

    name: str
    format: Format
    version: str

    def open(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        threads: int = 1,
        instances: int = 1,
    ) -> Session:
        """Open a variant from its verified bytes.

        Args:
            data: the file's bytes.
            inputs: the manifest's input specs; a quantized file's own integers are converted at this border.
            outputs: the manifest's output specs.
            threads: worker threads inside one call.
            instances: how many calls may run at once.

        Raises:
            LoadError: the file is not of this engine's format, needs an operator that the engine lacks, or has other
                names and shapes than the specs.
        """


@dataclass(frozen=True, slots=True)
class _Known:
    module: str
    cls: str
    needs: str
    distribution: str


_KNOWN = {
    "onnxruntime": _Known("toprope_shared.engines.onnx", "OnnxRuntime", "onnxruntime", "onnxruntime"),
    "litert": _Known("toprope_shared.engines.tflite", "LiteRt", "ai_edge_litert", "ai-edge-litert"),
    "tflite-runtime": _Known("toprope_shared.engines.tflite", "TfliteRuntime", "tflite_runtime", "tflite-runtime"),
}
ENGINE_NAMES = tuple(_KNOWN)


@dataclass(frozen=True, slots=True)
class Missing:
    """An engine that this machine can't use, with what to do about it."""

    name: str
    why: str


def find_engines(names: Iterable[str] | None = None) -> tuple[dict[str, Engine], tuple[Missing, ...]]:
    """Return the usable engines among `names` (all when None) and why the others are not.

    Raises:
        InputError: a name is not an engine's.
    """
    wanted = ENGINE_NAMES if names is None else tuple(names)
    found: dict[str, Engine] = {}
    missing: list[Missing] = []
    for name in wanted:
        if name not in _KNOWN:
            raise InputError(f"there is no engine {name!r}; choose among {', '.join(ENGINE_NAMES)}")
        why = _why_missing(name, _KNOWN[name])
        if why:
            missing.append(Missing(name, why))
        else:
            known = _KNOWN[name]
            found[name] = getattr(importlib.import_module(known.module), known.cls)()
    return found, tuple(missing)


def _why_missing(name: str, known: _Known) -> str:
    if importlib.util.find_spec(known.needs) is None:
        return f"{known.distribution} is not installed; pip install {known.distribution}"
    if name == "tflite-runtime" and int(np.__version__.split(".")[0]) >= 2:
        # It installs and imports with numpy 2 and then fails at the first interpreter.
        return f"tflite-runtime needs numpy 1 and this is numpy {np.__version__}; pip install 'numpy<2' or use litert"
    return ""


def version_of(distribution: str) -> str:
    """Return the installed version of a distribution."""
    return importlib.metadata.version(distribution)
