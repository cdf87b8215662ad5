"""The variants that a release can have, and what their names say.

A name is `<format>-<precision>`, or `teacher-<format>-<precision>` for one that is made of the larger model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from toprope_shared.manifest import REFERENCE, TEACHER, Format, Placement

FLOAT32 = "float32"
FLOAT16 = "float16"
DYNAMIC_INT8 = "dynamic-int8"
INT8 = "int8"

# The small model's, in the order in which they are shown.
VARIANTS = (
    "tflite-float32",
    "tflite-float16",
    "tflite-dynamic-int8",
    "tflite-int8",
    "onnx-float32",
    "onnx-float16",
    "onnx-int8",
)
# Only made when it is named: it holds nothing that the ONNX file has not, in more bytes, for who serves with TensorFlow.
SAVED_MODEL = "savedmodel-float32"
KNOWN = (*VARIANTS, SAVED_MODEL)
TEACHERS = tuple(f"{TEACHER}-{name}" for name in KNOWN)
# What is not named here runs at the edge; the teacher's variants run in the cloud.
PLACEMENTS: Mapping[str, Placement] = {"onnx-float32": Placement.BOTH, SAVED_MODEL: Placement.CLOUD}
PARITY_LIMITS_PPM: Mapping[str, int] = {FLOAT32: 200, FLOAT16: 20_000, DYNAMIC_INT8: 300_000, INT8: 300_000}


def saved_model_for(names: Collection[str]) -> str:
    """Return the SavedModel's variant that goes with others: the teacher's where there is one, as the cloud has it."""
    return f"{TEACHER}-{SAVED_MODEL}" if any(map(of_teacher, names)) else SAVED_MODEL


def of_teacher(name: str) -> bool:
    """Say whether a variant is made of the larger model."""
    return name.startswith(f"{TEACHER}-")


def reference_of(name: str) -> str:
    """Return whose outputs a variant must reproduce: `out` or `teacher`."""
    return TEACHER if of_teacher(name) else REFERENCE


def format_of(name: str) -> Format:
    """Return the format in a variant's name, e.g. tflite of tflite-int8."""
    return Format(_plain(name).partition("-")[0])


def precision_of(name: str) -> str:
    """Return the precision in a variant's name, e.g. int8 of tflite-int8."""
    return _plain(name).partition("-")[2]


def is_direct(name: str) -> bool:
    """Say whether a variant comes straight from the SavedModel, and not from a float32 ONNX file."""
    return format_of(name) is Format.TFLITE or precision_of(name) == FLOAT32


def filename(name: str) -> str:
    """Return the file of a variant in the bundle directory."""
    return f"{name}.{format_of(name)}"


def sibling(name: str, precision: str) -> str:
    """Return the variant of the same model and format with another precision."""
    return name.removesuffix(precision_of(name)) + precision


def placement(name: str, placements: Mapping[str, Placement]) -> Placement:
    """Return where a variant is meant to run: as a recipe places it, else as usual."""
    usual = Placement.CLOUD if of_teacher(name) else PLACEMENTS.get(name, Placement.EDGE)
    return placements.get(name, usual)


def _plain(name: str) -> str:
    return name.removeprefix(f"{TEACHER}-")
