"""Describes a release's holdout for its manifest, so that devices can tell how far live inputs and answers are from it.

A release whose inputs may not leave the device asks for private telemetry: its inputs are not described, and its answers are
told by randomised response.
"""

from __future__ import annotations

from pathlib import Path

from toprope_shared.manifest import REFERENCE, Privacy
from toprope_shared.monitoring import Monitoring, describe
from toprope_training import arrays
from toprope_training.terms import Terms

# Two classes are told apart with odds of at most e^2 = 7.4 to 1. Source: the range that Wang et al. 2017, "Locally
# Differentially Private Protocols for Frequency Estimation", measures, 0.5 to 4.
EPSILON = 2.0


def monitor(terms: Terms, holdout: Path) -> Monitoring | None:
    """Return the reference; None where nothing can be watched.

    Args:
        terms: what the release promises.
        holdout: `.npz` with arrays `in.<name>` and `out.<name>`, rows first.
    """
    found = arrays.load(holdout)
    inputs = {spec.name: found[f"in.{spec.name}"] for spec in terms.inputs}
    output = terms.class_output() or None
    scores = found.get(f"{REFERENCE}.{output}") if output else None
    words = (terms.privacy, *(one.privacy for one in terms.input_privacy))
    private = Privacy.NONE in words
    return describe(terms.inputs, inputs, scores, output, epsilon=EPSILON if private else None)
