"""Releases that are really trained, once a session; `toprope_training.release.make` is what others may call for their own."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from toprope_shared.clock import Clock
from toprope_training import release
from toprope_training.bundle import Bundle

WriteRecipe = Callable[..., Path]

# A recipe file as a user may write it: the default training, a plain dense layer, two variants. The marks are for tests.
OWN_RECIPE = """
import numpy as np

from toprope_shared.manifest import Metric, Privacy
from toprope_shared.tensors import TensorSpec
from toprope_training.recipe import Data, Recipe, Rows, mean_squared_error


class Sum(Recipe):
    name = "sum"
    inputs = (TensorSpec("left", "FP32", (-1, 2)), TensorSpec("right", "FP32", (-1, 2)))
    outputs = (TensorSpec("total", "FP32", (-1, 1)),)
    metric = Metric("mse", higher_is_better=False)
    privacy = Privacy.NONE
    accuracy_budget = {budget}
    variants = {variants}
    epochs = 2
    learning_rate = 0.01

    def data(self, seed):
        rng = np.random.default_rng(seed)
        left, right = (rng.normal(size=(96, 2)).astype(np.float32) for _ in range(2))
        rows = Rows({{"left": left, "right": right}}, (left + right).sum(axis=1, keepdims=True))
        return Data(rows.take(np.arange(64)), rows.take(np.arange(64, 96)))

    def build(self):
        import keras

        {before_build}
        left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
        both = keras.layers.Concatenate()([left, right])
        return keras.Model([left, right], keras.layers.Dense(1)(both))

    def score(self, outputs, targets):
        return mean_squared_error(outputs["total"], targets)


RECIPE = Sum()
"""


class FixedClock(Clock):
    """A clock that stands still."""

    def now(self) -> float:
        return 1_800_000_000.0

    def steady(self) -> float:
        return 0.0


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, str]:
    """The built-in recipe `linear`, trained, and its summary."""
    return release.make("linear", tmp_path_factory.mktemp("linear") / "bundle", clock=FixedClock())


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The built-in recipe `digits`, trained."""
    return release.make("digits", tmp_path_factory.mktemp("digits") / "bundle")[0]


@pytest.fixture
def write_recipe(tmp_path: Path) -> WriteRecipe:
    """Write a user's own recipe file; the arguments change what is wrong with it."""

    def write(
        *, budget: str = "0.1", variants: str = '("tflite-float32", "onnx-float32")', before_build: str = "pass"
    ) -> Path:
        path = tmp_path / "my_recipe.py"
        path.write_text(textwrap.dedent(OWN_RECIPE).format(budget=budget, variants=variants, before_build=before_build))
        return path

    return write
