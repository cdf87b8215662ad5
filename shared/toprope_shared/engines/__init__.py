"""Engines that run variants: onnxruntime, tflite-runtime and ai-edge-litert behind one small protocol."""

from toprope_shared.engines.base import ENGINE_NAMES, Engine, Missing, Session, find_engines

__all__ = ["ENGINE_NAMES", "Engine", "Missing", "Session", "find_engines"]
