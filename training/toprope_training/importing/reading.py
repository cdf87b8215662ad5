"""What the steps of an import are asked and what they answer; and what they write for the steps that follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from toprope_shared.errors import InputError
from toprope_shared.manifest import REFERENCE, Preprocessing
from toprope_shared.tensors import TensorSpec
from toprope_training import arrays, layout
from toprope_training.importing import examples
from toprope_training.importing.examples import Examples, Free, Fresh
from toprope_training.steps import Converted

GOLDEN_ROWS, GOLDEN_BYTES = 8, 4 << 20  # every device fetches them: fewer rows where a row is large
MAX_NAME = 256
REPRESENTATIVE_ROWS = 200


class Read(msgspec.Struct, frozen=True):
    """Read a model's file, run it on examples and write what comes of it into the folder `out`.

    Attributes:
        file: the model's file, or a SavedModel's folder.
        out: where golden set, holdout and representative rows go, and the model itself as the steps that follow want it.
        examples: the owner's `.npz`; None: examples are made up.
        shapes: by input, the whole shape of one call, where the owner names it.
        prefix: `teacher-` for the cloud's model of a pair, whose examples are those of the edge's.
        reference: whose outputs these are.
    """

    file: str
    out: str
    examples: str | None = None
    shapes: dict[str, tuple[int, ...]] = {}
    prefix: str = ""
    reference: str = REFERENCE


class Found(msgspec.Struct, frozen=True):
    """What a model is.

    Attributes:
        made: variants that already stand in the folder: the file itself.
        convertible: whether the folder holds a SavedModel that can be converted.
        kept: whether that SavedModel is the file itself, and so a variant.
        rows: of the golden set.
        rows_in_all: of the examples.
        stacked: how examples are run, see `manifest.Golden`.
        made_up: whether the examples are random numbers.
        digest: of the examples.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    made: tuple[Converted, ...]
    convertible: bool
    rows: int
    rows_in_all: int
    stacked: bool
    made_up: bool
    digest: str
    preprocessing: tuple[Preprocessing, ...] = ()
    kept: bool = False


class Export(msgspec.Struct, frozen=True):
    """Turn a PyTorch or scikit-learn file into an ONNX file."""

    file: str
    target: str
    examples: str | None = None


class Exported(msgspec.Struct, frozen=True):
    """What an exported model says of its classes; empty where it is no classifier."""

    labels: tuple[str, ...] = ()


def take_examples(request: Read, inputs: Sequence[Free], fresh: Fresh) -> Examples:
    """Return the owner's examples, those of the pair's first model, or made-up ones, with the model's outputs."""
    if request.reference != REFERENCE:
        held_out = arrays.load(Path(request.out) / layout.HOLDOUT)
        return examples.given(inputs, {name: array for name, array in held_out.items() if name.startswith("in.")}, fresh)
    if request.examples is not None:
        return examples.given(inputs, arrays.load(Path(request.examples)), fresh)
    return examples.make(inputs, fresh, request.shapes)


def write_examples(request: Read, found: Examples, *, in_order: bool) -> tuple[int, str]:
    """Write golden set, holdout and representative rows; return how many are golden, and the digest of all.

    A pair's second model adds its outputs to what the first one wrote.

    Args:
        request: says where.
        found: the examples.
        in_order: the golden rows are the first ones, because the model keeps state.
    """
    out, count = Path(request.out), len(next(iter(found.inputs.values())))
    inputs = arrays.prefixed("in", found.inputs)
    outputs = arrays.prefixed(request.reference, found.outputs)
    if request.reference == REFERENCE:
        row_bytes = sum(array.nbytes for array in (inputs | outputs).values()) // count
        rows = max(1, min(count, GOLDEN_ROWS, GOLDEN_BYTES // max(1, row_bytes)))
    else:
        rows = len(next(iter(arrays.load(out / layout.GOLDEN).values())))
    golden = np.arange(rows) if in_order else arrays.spread(count, rows)
    held_out = inputs | outputs | ({} if found.targets is None else {"targets": found.targets})
    few = {name: array[golden] for name, array in (inputs | outputs).items()}
    if request.reference != REFERENCE:
        held_out = arrays.load(out / layout.HOLDOUT) | held_out
        few = arrays.load(out / layout.GOLDEN) | few
    arrays.save(out / layout.HOLDOUT, held_out)
    arrays.save(out / layout.GOLDEN, few)
    typical = arrays.spread(count, REPRESENTATIVE_ROWS)
    arrays.save(out / layout.REPRESENTATIVE, {name: array[typical] for name, array in inputs.items()})
    return len(golden), arrays.digest(held_out)


def found_out(
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    found: Examples,
    written: tuple[int, str],
    made: tuple[Converted, ...] = (),
    preprocessing: tuple[Preprocessing, ...] = (),
) -> Found:
    """Return what a model is; one that made no variant of itself left a SavedModel to convert.

    Raises:
        InputError: a tensor's name is too long for the protocol.
    """
    for spec in (*inputs, *outputs):
        if not 0 < len(spec.name) <= MAX_NAME:
            raise InputError(
                f"its tensor {spec.name[:40]!r}… has a name of {len(spec.name)} characters; at most {MAX_NAME} fit"
            )
    return Found(
        inputs=inputs,
        outputs=_settle(outputs, found),
        made=made,
        convertible=not made,
        rows=written[0],
        rows_in_all=len(next(iter(found.inputs.values()))),
        stacked=found.stacked,
        made_up=found.made,
        digest=written[1],
        preprocessing=preprocessing,
    )


def _settle(outputs: Sequence[TensorSpec], found: Examples) -> tuple[TensorSpec, ...]:
    """Return the output specs with the rank and datatype that the model really gave; a size that is not declared stays -1."""
    settled = []
    for spec in outputs:
        array = found.outputs[spec.name]
        rank = array.ndim - 1 if found.stacked else array.ndim
        shape = spec.shape if len(spec.shape) == rank else (-1,) * rank
        settled.append(TensorSpec(spec.name, spec.datatype, shape))
    return tuple(settled)
