"""Engines that run variants: onnxruntime, tflite-runtime and ai-edge-litert behind one small protocol."""

from toprope_shared.engines.base import (
    ENGINE_NAMES,
    Engine,
    Missing,
    Opened,
    Session,
    WholeEngine,
    find_engine,
    find_engines,
    import_now,
    installed,
)

__all__ = [
    "ENGINE_NAMES",
    "Engine",
    "Missing",
    "Opened",
    "Session",
    "WholeEngine",
    "find_engine",
    "find_engines",
    "import_now",
    "installed",
]
