"""What a recipe is: data, architecture, training and the limits that its release must keep.

A recipe is a subclass of `Recipe` and an object of it under the name `RECIPE` in its module. The module is loaded in
processes that must stay free of TensorFlow, so it imports TensorFlow and Keras inside `build` and `train`, never at its top.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from toprope_shared.manifest import Metric, Placement, Privacy
from toprope_shared.tensors import Array, Tensors, TensorSpec

Progress = Callable[[str, int, int], None]
"""Told a sentence, how much is done and of how much (0: unknown)."""

VARIANTS = ("tflite-float32", "tflite-float16", "tflite-int8", "onnx-float32", "onnx-int8")
PLACEMENTS: Mapping[str, Placement] = {
    "tflite-float32": Placement.EDGE,
    "tflite-float16": Placement.EDGE,
    "tflite-int8": Placement.EDGE,
    "onnx-float32": Placement.BOTH,
    "onnx-int8": Placement.EDGE,
}
PARITY_LIMITS_PPM: Mapping[str, int] = {"float32": 200, "float16": 20_000, "int8": 300_000}


@dataclass(frozen=True, slots=True)
class Rows:
    """Examples: inputs by tensor name, batch first, and the targets, one a row."""

    inputs: Tensors
    targets: Array

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, numbers: Array) -> Rows:
        """Return the rows of these numbers."""
        return Rows({name: array[numbers] for name, array in self.inputs.items()}, self.targets[numbers])


@dataclass(frozen=True, slots=True)
class Data:
    """What is learned from and what is held out; no row stands in both."""

    train: Rows
    holdout: Rows


class Recipe(ABC):
    """How one model is made.

    Attributes:
        name: the model's name: letters, digits, `-` and `_`.
        description: one sentence for people.
        inputs: tensor specs; only the first dimension, the batch, may be -1.
        outputs: tensor specs, in the order in which the Keras model returns them.
        labels: names of the classes; empty for what is no classification.
        metric: what `score` returns and which way is better.
        privacy: how much of a request may leave the device; there is no default, the author must choose.
        deadline_ms: how long a caller waits for the fallback unless it says otherwise.
        accuracy_budget: how much worse than the Keras reference a variant's metric may be.
        required: the worst metric that the reference itself may have; None is any.
        parity_limits_ppm: by precision, how far any output on the holdout may be from the reference, in millionths of
            max(1, |largest reference output|).
        variants: which of `VARIANTS` to make.
        placements: by variant, where it is meant to run.
        golden_rows: how many holdout rows travel with the release as its golden set.
        epochs, batch_size, learning_rate: what the default `train` uses.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    inputs: ClassVar[tuple[TensorSpec, ...]]
    outputs: ClassVar[tuple[TensorSpec, ...]]
    labels: ClassVar[tuple[str, ...]] = ()
    metric: ClassVar[Metric]
    privacy: ClassVar[Privacy]
    deadline_ms: ClassVar[int] = 2000
    accuracy_budget: ClassVar[float]
    required: ClassVar[float | None] = None
    parity_limits_ppm: ClassVar[Mapping[str, int]] = PARITY_LIMITS_PPM
    variants: ClassVar[tuple[str, ...]] = VARIANTS
    placements: ClassVar[Mapping[str, Placement]] = PLACEMENTS
    golden_rows: ClassVar[int] = 8
    epochs: ClassVar[int] = 10
    batch_size: ClassVar[int] = 32
    learning_rate: ClassVar[float] = 0.001

    @abstractmethod
    def data(self, seed: int) -> Data:
        """Return the data; the same seed gives the same rows."""

    @abstractmethod
    def build(self) -> Any:
        """Return an untrained `keras.Model` whose inputs have the names of `inputs`."""

    @abstractmethod
    def score(self, outputs: Tensors, targets: Array) -> float:
        """Return the metric of these outputs; runs where TensorFlow must not be, so with numpy alone."""

    def loss(self) -> Any:
        """Return the Keras loss that the default `train` uses."""
        return "mean_squared_error"

    def train(self, model: Any, rows: Rows, progress: Progress) -> None:
        """Train the model in place. The default is `model.fit` with Adam; chance is already seeded."""
        import keras

        told = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, _logs: progress("Training the model", epoch + 1, self.epochs)
        )
        model.compile(optimizer=keras.optimizers.Adam(self.learning_rate), loss=self.loss())
        inputs = dict(rows.inputs)
        model.fit(
            inputs if len(inputs) > 1 else next(iter(inputs.values())),
            rows.targets,
            batch_size=self.batch_size,
            epochs=self.epochs,
            verbose=0,
            callbacks=[told],
        )

    def weights(self, model: Any) -> dict[str, Array]:
        """Return the trained weights under the names that `weights.npz` gives them."""
        return {variable.path: np.asarray(variable.value) for variable in model.weights}

    def summary(self, model: Any) -> str:
        """Return a sentence about what was learned, for people; empty says nothing."""
        return ""

    def parameters(self) -> dict[str, str | int | float | bool]:
        """Return what the provenance tells of this recipe's settings."""
        return {"epochs": self.epochs, "batch_size": self.batch_size, "learning_rate": self.learning_rate}


def accuracy(probabilities: Array, labels: Array) -> float:
    """Return the share of rows whose largest output is the label's; probabilities [n, classes], labels [n]."""
    return float(np.mean(probabilities.argmax(axis=-1) == labels))


def mean_squared_error(outputs: Array, targets: Array) -> float:
    """Return the mean of the squared differences, computed in float64."""
    return float(np.mean((outputs.astype(np.float64) - targets.astype(np.float64)) ** 2))
