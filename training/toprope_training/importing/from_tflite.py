"""Reads a TFLite file: the first engine that runs it answers the examples. Must never hold TensorFlow."""

from __future__ import annotations

from pathlib import Path

from toprope_shared.engines import Engine, find_engines
from toprope_shared.errors import EngineError, InputError, LoadError
from toprope_shared.manifest import Preprocessing
from toprope_training import tflite_facts
from toprope_training.importing.examples import Run, free
from toprope_training.importing.reading import Found, Read, found_out, take_examples, write_examples
from toprope_training.recipe import Progress
from toprope_training.steps import Converted
from toprope_training.tflite_facts import Tensor, TfliteFacts
from toprope_training.variants import DYNAMIC_INT8, FLOAT16, FLOAT32, INT8, filename

# litert checks a file before it runs it; tflite-runtime dies of a damaged one.
_ENGINES = ("litert", "tflite-runtime")


def run(request: Read, progress: Progress) -> Found:
    """Read the file, answer the examples and put the file into the folder as a variant.

    Raises:
        InputError: the file can't be imported; the text says why.
    """
    progress("Reading the TFLite file", 0, 0)
    data = Path(request.file).read_bytes()
    facts = tflite_facts.read(data)
    inputs = tuple(tensor.spec() for tensor in facts.inputs)
    outputs = tuple(tensor.spec() for tensor in facts.outputs)
    name = f"{request.prefix}tflite-{_precision(facts)}"
    engine = _engine(data, facts)

    def fresh() -> Run:
        return engine.open(data, inputs, outputs).run

    progress("Running it on examples", 0, 0)
    found = take_examples(request, [free(spec) for spec in inputs], fresh)
    (Path(request.out) / filename(name)).write_bytes(data)
    written = write_examples(request, found, in_order=facts.needs.stateful)
    quantized = tuple(_quantized(tensor) for tensor in facts.inputs if tensor.scale)
    return found_out(inputs, outputs, found, written, made=(Converted(name, facts.needs),), preprocessing=quantized)


def _precision(facts: TfliteFacts) -> str:
    if not facts.quantized:
        return FLOAT16 if facts.float16 else FLOAT32
    return INT8 if any(tensor.scale for tensor in (*facts.inputs, *facts.outputs)) else DYNAMIC_INT8


def _engine(data: bytes, facts: TfliteFacts) -> Engine:
    """Return the first engine that opens the file.

    Raises:
        InputError: none does.
    """
    inputs = tuple(tensor.spec() for tensor in facts.inputs)
    outputs = tuple(tensor.spec() for tensor in facts.outputs)
    engines, missing = find_engines(_ENGINES)
    problems = [one.why for one in missing]
    for engine in engines.values():
        try:
            engine.open(data, inputs, outputs).close()
        except (LoadError, EngineError) as error:
            problems.append(str(error))
        else:
            return engine
    raise InputError(f"no engine runs it: {'; '.join(problems)}")


def _quantized(tensor: Tensor) -> Preprocessing:
    return Preprocessing(
        tensor.name,
        f"quantized: real value = (value - {tensor.zero_point}) * {tensor.scale:.9g}; give the quantized values",
    )
