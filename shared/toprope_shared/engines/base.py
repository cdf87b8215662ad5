"""What an engine is, and which of them this machine has.

An engine is imported when it opens its first file: a device whose models need one engine never pays for the others. One that
is installed and broken says so then.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from toprope_shared.errors import InputError, LoadError, RequestError
from toprope_shared.manifest import Format
from toprope_shared.tensors import Array, Tensors, TensorSpec, datatype_of

logger = logging.getLogger(__name__)


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

    @property
    def name(self) -> str:
        """One of `CLOUD_ENGINE_NAMES`."""

    @property
    def format(self) -> Format:
        """The format that it opens."""

    @property
    def version(self) -> str:
        """The version of its package."""

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
class Opened:
    """A session with the specs that it was opened for."""

    session: Session
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class WholeEngine(Engine, Protocol):
    """An engine that also opens a file of which nothing is known."""

    def open_as_is(self, data: bytes, *, threads: int = 1) -> Opened:
        """Open a file with the names, datatypes and shapes that it declares itself.

        Args:
            data: the file's bytes.
            threads: worker threads inside one call.

        Raises:
            LoadError: as `Engine.open`; or a tensor has no name, or a type that can't be sent, such as text.
        """


@dataclass(frozen=True, slots=True)
class _Known:
    module: str
    cls: str
    needs: str
    distribution: str
    format: Format


_KNOWN = {
    "onnxruntime": _Known("toprope_shared.engines.onnx", "OnnxRuntime", "onnxruntime", "onnxruntime", Format.ONNX),
    "litert": _Known("toprope_shared.engines.tflite", "LiteRt", "ai_edge_litert", "ai-edge-litert", Format.TFLITE),
    "tflite-runtime": _Known(
        "toprope_shared.engines.tflite", "TfliteRuntime", "tflite_runtime", "tflite-runtime", Format.TFLITE
    ),
    "tensorflow": _Known("toprope_shared.engines.tensorflow", "TensorFlow", "tensorflow", "tensorflow", Format.SAVEDMODEL),
}
CLOUD_ENGINE_NAMES = tuple(_KNOWN)
# TensorFlow is for the cloud: it is named by who wants it.
ENGINE_NAMES = tuple(name for name in _KNOWN if name != "tensorflow")
MAX_NAME = 256  # characters of a tensor's name, as manifests have it


@dataclass(frozen=True, slots=True)
class Missing:
    """An engine that this machine can't use, with what to do about it."""

    name: str
    why: str


def find_engines(names: Iterable[str] | None = None) -> tuple[dict[str, Engine], tuple[Missing, ...]]:
    """Return the usable engines among `names` (a device's when None) and why the others are not; imports none of them.

    Raises:
        InputError: a name is not an engine's.
    """
    wanted = ENGINE_NAMES if names is None else tuple(names)
    found: dict[str, Engine] = {}
    missing: list[Missing] = []
    for name in wanted:
        if name not in _KNOWN:
            raise InputError(f"there is no engine {name!r}; choose among {', '.join(CLOUD_ENGINE_NAMES)}")
        why = _why_missing(name, _KNOWN[name])
        if why:
            missing.append(Missing(name, why))
        else:
            found[name] = _Awaited(name, _KNOWN[name])
    return found, tuple(missing)


def installed(format_: Format) -> tuple[tuple[str, ...], tuple[Missing, ...]]:
    """Return the names of the usable engines for a format, and why the others are not; imports none of them."""
    found = {name: _why_missing(name, known) for name, known in _KNOWN.items() if known.format == format_}
    usable = tuple(name for name, why in found.items() if not why)
    return usable, tuple(Missing(name, why) for name, why in found.items() if why)


def find_engine(name: str) -> WholeEngine:
    """Return one usable engine.

    Raises:
        InputError: the name is not an engine's.
        LoadError: this machine does not have it, or it can't be imported; the text says what to do.
    """
    if name not in _KNOWN:
        raise InputError(f"there is no engine {name!r}; choose among {', '.join(CLOUD_ENGINE_NAMES)}")
    why = _why_missing(name, _KNOWN[name])
    if why:
        raise LoadError(why)
    return _made(name, _KNOWN[name])


def import_now(engine: Engine) -> None:
    """Import an engine that `find_engines` has found, for who measures what comes after, or asks whether it is whole.

    Raises:
        LoadError: it is installed and can't be imported; the text says what to do.
    """
    if isinstance(engine, _Awaited):
        _ = engine.engine


def _made(name: str, known: _Known) -> WholeEngine:
    try:
        engine: WholeEngine = getattr(importlib.import_module(known.module), known.cls)()
    except Exception as error:  # an extension that can't be loaded raises what it likes: ImportError, OSError, RuntimeError
        raise LoadError(
            f"{name} is installed and can't be imported ({error}); "
            f"pip install --force-reinstall {known.distribution}, or leave it out with the setting engines"
        ) from error
    return engine


class _Awaited:
    """An installed engine that is imported when it opens its first file."""

    def __init__(self, name: str, known: _Known) -> None:
        self.name = name
        self.format = known.format
        self.contained = known.format is Format.SAVEDMODEL  # it runs what it opens in processes of its own
        self._known = known

    @property
    def version(self) -> str:
        if "engine" not in vars(self):
            import importlib.metadata  # as slow as a small engine

            try:
                return importlib.metadata.version(self._known.distribution)
            except importlib.metadata.PackageNotFoundError:
                logger.debug("%s came with another package, which is imported to be asked for its version", self.name)
        return self.engine.version

    @cached_property
    def engine(self) -> WholeEngine:
        return _made(self.name, self._known)

    def open(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        threads: int = 1,
        instances: int = 1,
    ) -> Session:
        """Open a variant; see `Engine.open`. An engine that can't be imported is a `LoadError` too."""
        return self.engine.open(data, inputs, outputs, threads=threads, instances=instances)

    def open_as_is(self, data: bytes, *, threads: int = 1) -> Opened:
        """Open a file as it is; see `WholeEngine.open_as_is`."""
        return self.engine.open_as_is(data, threads=threads)


def _why_missing(name: str, known: _Known) -> str:
    if importlib.util.find_spec(known.needs) is None:
        return f"{known.distribution} is not installed; pip install {known.distribution}"
    if name == "tflite-runtime" and int(np.__version__.split(".")[0]) >= 2:
        # It installs and imports with numpy 2 and then fails at the first interpreter.
        return f"tflite-runtime needs numpy 1 and this is numpy {np.__version__}; pip install 'numpy<2' or use litert"
    return ""


def version_of(distribution: str, module: Any) -> str:
    """Return the version of an engine's package: its own word, which is quicker, else the distribution's."""
    known = getattr(module, "__version__", None)
    if isinstance(known, str):
        return known
    import importlib.metadata  # as slow as a small engine

    return importlib.metadata.version(distribution)


def declared(name: str, dtype: np.dtype[Any] | None, shape: Sequence[Any]) -> TensorSpec:
    """Return the spec of a tensor as a file declares it; a size that is no number is free.

    Raises:
        LoadError: it has no name, or a type that can't be sent.
    """
    if not 1 <= len(name) <= MAX_NAME:
        raise LoadError(f"the file has a tensor whose name is {len(name)} characters long; 1 to {MAX_NAME} can be sent")
    try:
        kind = "" if dtype is None else datatype_of(np.empty(0, dtype))
    except RequestError:
        kind = ""
    if kind in ("", "BYTES"):
        what = "text" if kind else "of a type that is no plain array of numbers"
        raise LoadError(
            f"the tensor {name!r} is {what}; a model takes and gives numbers, so move that step out of the file"
        )
    return TensorSpec(
        name, kind, tuple(int(size) if isinstance(size, int | np.integer) and size >= 0 else -1 for size in shape)
    )


def not_numbers(name: str, what: str) -> LoadError:
    """Return the error for a tensor that holds what can't be sent."""
    return LoadError(f"the tensor {name!r} is {what}; a model takes and gives numbers, so move that step out of the file")


def explained(error: Exception, hints: Mapping[str, str]) -> str:
    """Return an engine's words, after a sentence for people where they are known to mean something."""
    text = str(error)
    hint = next((hint for words, hint in hints.items() if words in text), "")
    return f"{hint}; it says: {text}" if hint else text
