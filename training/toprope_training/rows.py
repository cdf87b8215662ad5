"""The rows that a release is measured on: checked, and written for the steps that follow. numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from toprope_shared.errors import InputError
from toprope_shared.tensors import Array, Tensors, TensorSpec
from toprope_training import arrays, layout
from toprope_training.recipe import Data, Recipe, Rows

REPRESENTATIVE_ROWS = 200
# Fewer held-out rows say nothing about a model: with 8, one row is an eighth of the metric.
MIN_HOLDOUT_ROWS = 8


def check_data(recipe: Recipe, data: Data) -> None:
    """Hold a recipe's data against its specs.

    Raises:
        InputError: rows or inputs are missing, do not fit, or hold numbers that are not finite.
    """
    if not isinstance(data, Data) or not all(isinstance(rows, Rows) for rows in (data.train, data.holdout)):
        raise InputError(f"`data` of the recipe {recipe.name} must return Data(train=Rows(...), holdout=Rows(...))")
    for what, rows in (("training", data.train), ("holdout", data.holdout)):
        wrong = [
            name for name, array in (*rows.inputs.items(), ("targets", rows.targets)) if not isinstance(array, np.ndarray)
        ]
        if wrong:
            raise InputError(f"the {what} rows of {recipe.name} give {wrong[0]!r} as something else than a numpy array")
        if not len(rows):
            raise InputError(f"the recipe {recipe.name} gave no {what} rows")
        for spec in recipe.inputs:
            _check_input(what, spec, rows)
        if rows.targets.dtype.kind == "f" and not np.isfinite(rows.targets).all():
            raise InputError(f"the {what} rows of {recipe.name} have targets that are NaN or infinite; mend or drop them")
    if len(data.holdout) < MIN_HOLDOUT_ROWS:
        count = "1 row" if len(data.holdout) == 1 else f"{len(data.holdout)} rows"
        raise InputError(
            f"the recipe {recipe.name} holds out {count}, and a release is judged by its holdout: "
            f"hold out at least {MIN_HOLDOUT_ROWS}, better hundreds"
        )


def _check_input(what: str, spec: TensorSpec, rows: Rows) -> None:
    array = rows.inputs.get(spec.name)
    if array is None:
        have = ", ".join(rows.inputs) or "none"
        raise InputError(f"the {what} rows have no input {spec.name!r}; they have {have}")
    if array.dtype != spec.dtype or len(array) != len(rows) or array.shape[1:] != spec.shape[1:]:
        raise InputError(
            f"the {what} rows give {spec.name!r} as {array.dtype}{list(array.shape)}; "
            f"the recipe says {spec.dtype}{list(spec.shape)} and there are {len(rows)} targets"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).sum())
        raise InputError(f"{bad} {what} rows have NaN or infinite values in {spec.name!r}; mend or drop them")


def write_rows(out: Path, recipe: Recipe, data: Data, references: Mapping[str, Tensors]) -> int:
    """Write golden set, holdout and representative rows; return how many are golden.

    Args:
        out: the folder.
        recipe: says how many rows are golden and which outputs are compared.
        data: the rows.
        references: outputs on the holdout by reference (`out`, `teacher`).
    """
    golden = arrays.spread(len(data.holdout), recipe.golden_rows)
    compared = recipe.compared or tuple(spec.name for spec in recipe.outputs)
    expected: dict[str, Array] = {}
    held_out = arrays.prefixed("in", data.holdout.inputs)
    for kind, outputs in references.items():
        expected |= arrays.prefixed(kind, {name: outputs[name][golden] for name in compared})
        held_out |= arrays.prefixed(kind, outputs)
    arrays.save(out / layout.GOLDEN, arrays.prefixed("in", data.holdout.take(golden).inputs) | expected)
    arrays.save(out / layout.HOLDOUT, held_out | {"targets": data.holdout.targets})
    typical = data.train.take(arrays.spread(len(data.train), REPRESENTATIVE_ROWS))
    arrays.save(out / layout.REPRESENTATIVE, arrays.prefixed("in", typical.inputs))
    return len(golden)


def data_digest(data: Data) -> str:
    """Return the SHA-256 over all training and holdout arrays."""
    everything: dict[str, Array] = {}
    for what, rows in (("train", data.train), ("holdout", data.holdout)):
        everything |= arrays.prefixed(what, rows.inputs) | {f"{what} targets": rows.targets}
    return arrays.digest(everything)
