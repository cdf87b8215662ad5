"""What training writes into the manifest for devices to hold live rows against."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from toprope_shared.manifest import InputPrivacy, Privacy
from toprope_shared.tensors import TensorSpec
from toprope_training import arrays
from toprope_training.bundle import Bundle
from toprope_training.monitor import EPSILON, monitor
from toprope_training.recipes.linear import RECIPE
from toprope_training.terms import Terms, of_recipe

RNG = np.random.default_rng(4)
IMAGES = RNG.random(size=(300, 8, 8)).astype(np.float32)
FLAGS = (RNG.random(size=(300, 2)) < 0.3).astype(np.float32)
SCORES = np.eye(3, dtype=np.float32)[RNG.choice(3, 300, p=[0.5, 0.3, 0.2])]


@pytest.fixture
def holdout(tmp_path: Path) -> Path:
    path = tmp_path / "holdout.npz"
    texts = np.array([b"a"] * 300, dtype=object)
    arrays.save(path, {"in.image": IMAGES, "in.flags": FLAGS, "in.text": texts.astype("S1"), "out.y": SCORES})
    return path


def terms(privacy: Privacy = Privacy.FULL, *words: InputPrivacy) -> Terms:
    inputs = (
        TensorSpec("image", "FP32", (-1, 8, 8)),
        TensorSpec("flags", "FP32", (-1, 2)),
        TensorSpec("text", "BYTES", (-1,)),
    )
    outputs = (TensorSpec("y", "FP32", (-1, 3)),)
    return msgspec.structs.replace(
        of_recipe(RECIPE),
        inputs=inputs,
        outputs=outputs,
        labels=("a", "b", "c"),
        privacy=privacy,
        input_privacy=words,
    )


def test_short_rows_are_described_element_by_element_long_ones_by_mean_and_spread_and_texts_not(holdout: Path) -> None:
    found = monitor(terms(), holdout)
    assert found is not None
    assert [(one.input, one.of) for one in found.features] == [
        ("image", "mean"),
        ("image", "spread"),
        ("flags", "0"),
        ("flags", "1"),
    ]
    assert found.rows == 300
    assert found.epsilon is None
    assert found.classes is not None
    assert np.allclose(found.classes.shares, SCORES.mean(axis=0), atol=1e-6)


def test_bins_hold_about_equal_shares_and_few_values_a_bin_each(holdout: Path) -> None:
    found = monitor(terms(), holdout)
    assert found is not None
    mean, _, flag, _ = found.features
    assert len(mean.shares) == 10
    assert max(mean.shares) - min(mean.shares) < 0.02
    assert max(flag.shares) == pytest.approx(1 - FLAGS[:, 0].mean(), abs=1e-6)
    assert sum(flag.shares) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("words", [(), (InputPrivacy("flags", Privacy.NONE),)])
def test_what_may_not_leave_is_not_described_and_asks_for_private_telemetry(
    holdout: Path, words: tuple[InputPrivacy, ...]
) -> None:
    found = monitor(terms(Privacy.FULL if words else Privacy.NONE, *words), holdout)
    assert found is not None
    assert (found.features, found.epsilon) == ((), EPSILON)
    assert found.classes is not None


def test_a_trained_release_carries_its_reference_and_stays_small(linear: tuple[Bundle, str]) -> None:
    manifest = linear[0].manifest
    assert manifest.monitoring is not None or manifest.fallback.privacy is Privacy.NONE
    assert len(msgspec.json.encode(manifest.monitoring)) < 8_000
