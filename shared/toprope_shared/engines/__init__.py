"""Engines that run variants: onnxruntime, tflite-runtime, ai-edge-litert and TensorFlow behind one small protocol."""

from toprope_shared.engines.base import (
    CLOUD_ENGINE_NAMES,
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
    "CLOUD_ENGINE_NAMES",
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
