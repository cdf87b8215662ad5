"""One opened variant: opens it from verified bytes, warms it, counts its calls, and closes it when its last call has ended.

Everything here but `open_variant` and the sessions' own `run` happens on the event loop, so the counts need no lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine, Session
from toprope_shared.errors import EngineError, LoadError
from toprope_shared.manifest import Manifest, Variant
from toprope_shared.tensors import Array, TensorSpec

logger = logging.getLogger(__name__)


class RuntimeMissingError(LoadError):
    """The engine that a variant was chosen for is not on this device.

    Args:
        engine: the engine's name.
    """

    code = "runtime_missing"

    def __init__(self, message: str, *, engine: str) -> None:
        super().__init__(message)
        self.engine = engine


@dataclass(eq=False, slots=True)
class Loaded:
    """One opened variant with its statistics.

    Attributes:
        engine: the engine's name.
        runtime: engine, version and precision, e.g. `onnxruntime/1.32.0;int8`.
        calls: calls that ended, or that outlived their deadline inside the engine.
        failures: those among them that failed or outlived their deadline.
        in_flight: calls whose thread has not ended yet.
        retired: whether it is closed as soon as nothing is in flight.
        changed: set whenever a call has ended, a count has grown or it was retired.
    """

    manifest: Manifest
    variant: Variant
    engine: str
    runtime: str
    session: Session
    calls: int = 0
    failures: int = 0
    in_flight: int = 0
    retired: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _close: Callable[[Session], None] | None = None

    @property
    def artifact(self) -> str:
        """The file that runs, as `sha256:<hex>`."""
        return f"sha256:{self.variant.artifact.sha256}"

    @property
    def title(self) -> str:
        """The release and how it runs, for sentences."""
        return f"{self.manifest.model} {self.manifest.version} ({self.runtime})"

    def count(self, *, failed: bool) -> None:
        """Take in how a call went."""
        self.calls += 1
        self.failures += failed
        self.changed.set()

    def enter(self) -> None:
        """Note that a thread begins to use the session."""
        self.in_flight += 1

    def leave(self) -> None:
        """Note that a thread has ended; the last one out of a retired session closes it."""
        self.in_flight -= 1
        self.changed.set()
        self._close_when_idle()

    def retire(self, close: Callable[[Session], None]) -> None:
        """Take it out of service; `close` gets the session once no call is in flight."""
        self.retired = True
        self._close = close
        self.changed.set()
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._close is not None and self.in_flight == 0:
            close, self._close = self._close, None
            close(self.session)


def open_variant(
    blobs: Blobs,
    engines: Mapping[str, Engine],
    manifest: Manifest,
    variant: Variant,
    engine: str,
    *,
    threads: int,
    instances: int,
) -> Loaded:
    """Read a variant verified, open it and run one row of zeros through it. Blocks: call it from a worker thread.

    Raises:
        IntegrityError: the file is missing or not what its digest says.
        RuntimeMissingError: this device does not have the engine.
        LoadError: the engine is for another format or does not open the file.
    """
    if engine not in engines:
        raise RuntimeMissingError(
            f"the engine {engine} is not on this device; it has {', '.join(sorted(engines)) or 'none'}", engine=engine
        )
    chosen = engines[engine]
    if chosen.format != variant.format:
        raise LoadError(f"{engine} opens {chosen.format} files and the variant {variant.name} is {variant.format}")
    data = blobs.read(variant.artifact.sha256)
    session = chosen.open(data, manifest.inputs, manifest.outputs, threads=threads, instances=instances)
    loaded = Loaded(manifest, variant, engine, f"{chosen.name}/{chosen.version};{variant.precision}", session)
    try:
        session.run({spec.name: _zeros(spec) for spec in manifest.inputs})
    except EngineError as error:
        # A model may refuse one row of zeros and be sound: whether it is, the golden vectors have said in the probe.
        logger.info("%s could not be warmed with a row of zeros: %s", loaded.title, error)
    return loaded


def _zeros(spec: TensorSpec) -> Array:
    shape = tuple(1 if size < 0 else size for size in spec.shape)
    return np.full(shape, b"", dtype=object) if spec.datatype == "BYTES" else np.zeros(shape, dtype=spec.dtype)
