"""The names of the files in a bundle directory, and of those that only exist while it is made."""

from __future__ import annotations

MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
WEIGHTS = "weights.npz"
SAVED_MODEL = "saved_model"
LOG = "train.log"
CHUNKS = ".chunks"

HOLDOUT = "holdout.npz"
REPRESENTATIVE = "representative.npz"
SCRATCH = (HOLDOUT, REPRESENTATIVE)
