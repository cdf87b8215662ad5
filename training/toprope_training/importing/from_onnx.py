"""Reads an ONNX file: onnxruntime answers the examples. Needs no TensorFlow."""

from __future__ import annotations

from pathlib import Path

from toprope_shared.engines import Session, find_engines
from toprope_shared.errors import EngineError, InputError, LoadError
from toprope_shared.tensors import TensorSpec
from toprope_training import onnx_facts
from toprope_training.importing.examples import Run, free
from toprope_training.importing.reading import Found, Read, found_out, take_examples, write_examples
from toprope_training.recipe import Progress
from toprope_training.variants import FLOAT16, FLOAT32, INT8, filename

_QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger"}
)


def run(request: Read, progress: Progress) -> Found:
    """Read the file, answer the examples and put the file into the folder as a variant.

    Raises:
        InputError: the file can't be imported; the text says why.
    """
    progress("Reading the ONNX file", 0, 0)
    data = Path(request.file).read_bytes()
    facts = onnx_facts.read(data)
    name = f"{request.prefix}onnx-{_precision(facts)}"

    def fresh() -> Run:
        return _open(data, facts.inputs, facts.outputs).run

    progress("Running it on examples", 0, 0)
    found = take_examples(request, [free(spec, facts.sizes[spec.name]) for spec in facts.inputs], fresh)
    (Path(request.out) / filename(name)).write_bytes(data)
    written = write_examples(request, found, in_order=False)
    return found_out(facts.inputs, facts.outputs, found, written, made=(onnx_facts.inspect(name, data),))


def _precision(facts: onnx_facts.OnnxFacts) -> str:
    if _QUANTIZED & set(facts.needs.ops):
        return INT8
    return FLOAT16 if facts.float16 else FLOAT32


def _open(data: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Session:
    engines, missing = find_engines(["onnxruntime"])
    if missing:
        raise InputError(missing[0].why)
    try:
        return engines["onnxruntime"].open(data, inputs, outputs)
    except (LoadError, EngineError) as error:
        raise InputError(f"onnxruntime can't run it: {error}") from error
