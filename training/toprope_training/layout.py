"""The names of the files in a bundle directory, and of those that only exist while it is made."""

from __future__ import annotations

from toprope_shared.manifest import REFERENCE

MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
WEIGHTS = "weights.npz"
SAVED_MODEL = "saved_model"
LOG = "train.log"
MEASUREMENTS = "measurements.json"
REPORT = "report.html"
CHUNKS = ".chunks"
DELTA = ".delta"

HOLDOUT = "holdout.npz"
REPRESENTATIVE = "representative.npz"
ANSWERS = ".answers.npz"
SCRATCH = (HOLDOUT, REPRESENTATIVE)


def saved_model(kind: str) -> str:
    """Return the SavedModel's folder of the recipe's own model (`out`) or of its `teacher`."""
    return SAVED_MODEL if kind == REFERENCE else f"{kind}_{SAVED_MODEL}"
