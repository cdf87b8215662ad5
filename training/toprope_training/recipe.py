"""What a recipe is: data, architecture, training and the limits that its release must keep.

A recipe is a subclass of `Recipe` and an object of it under the name `RECIPE` in its module. The module is loaded in
processes that must stay free of TensorFlow, so it imports TensorFlow and Keras inside `build` and `train`, never at its top.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from toprope_shared.manifest import InputPrivacy, Metric, Placement, Preprocessing, Privacy
from toprope_shared.tensors import Array, Tensors, TensorSpec
from toprope_training.metrics import accuracy, hit_rate, mean_squared_error
from toprope_training.variants import PARITY_LIMITS_PPM, VARIANTS

__all__ = ["PARITY_LIMITS_PPM", "Data", "Progress", "Recipe", "Rows", "accuracy", "hit_rate", "mean_squared_error"]

Progress = Callable[[str, int, int], None]
"""Told a sentence, how much is done and of how much (0: unknown)."""


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
        classes: the output that holds one score a label, for the calibration; empty is the first whose last dimension fits
            the labels.
        logits: whether these scores are logits and not probabilities.
        compared: the outputs that every variant must reproduce; empty is all. Leave out what follows from the others by a
            jump, such as the indices beside top scores: the metric judges those.
        metric: what `score` returns and which way is better.
        privacy: how much of a request may leave the device; there is no default, the author must choose.
        input_privacy: more about single inputs: what stands for one that is redacted, which never leave; see `InputPrivacy`.
        deadline_ms: how long a caller waits for the fallback unless it says otherwise.
        accuracy_budget: how much worse than the Keras reference a variant's metric may be.
        required: the worst metric that the reference itself may have; None is any.
        parity_limits_ppm: by precision, how far any output on the holdout may be from the reference, in millionths of
            max(1, |largest reference output|).
        variants: which of `variants.KNOWN` and, with a teacher, of `variants.TEACHERS` to make.
        placements: by variant, where it is meant to run, when that is not as usual (`variants.placement`).
        engines: the engines that every variant of their format must run on; one that is not installed here is not asked.
        golden_rows: how many holdout rows travel with the release as its golden set.
        alpha: the bound on the share of kept answers in which edge and cloud may differ, see `manifest.Calibration`.
        margin: how far the probabilities of the two best classes must be apart for the edge's answer to stand, 0 to 1.
        distillation: the teacher's share in the student's targets, 0 to 1.
        takes: what a file given with `--data` must be; empty: the recipe takes none.
        source: that file, None when none was given.
        tensorboard: the folder for TensorBoard's event files, None when none was asked for.
        epochs, batch_size, learning_rate: what the default `train` uses.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    inputs: ClassVar[tuple[TensorSpec, ...]]
    outputs: ClassVar[tuple[TensorSpec, ...]]
    labels: tuple[str, ...] = ()
    classes: ClassVar[str] = ""
    logits: ClassVar[bool] = False
    compared: ClassVar[tuple[str, ...]] = ()
    metric: ClassVar[Metric]
    privacy: ClassVar[Privacy]
    input_privacy: ClassVar[tuple[InputPrivacy, ...]] = ()
    deadline_ms: ClassVar[int] = 2000
    accuracy_budget: ClassVar[float]
    required: ClassVar[float | None] = None
    parity_limits_ppm: ClassVar[Mapping[str, int]] = PARITY_LIMITS_PPM
    variants: ClassVar[tuple[str, ...]] = VARIANTS
    placements: ClassVar[Mapping[str, Placement]] = {}
    engines: ClassVar[tuple[str, ...]] = ("tflite-runtime", "litert", "onnxruntime")
    golden_rows: ClassVar[int] = 8
    alpha: ClassVar[float] = 0.05
    margin: ClassVar[float] = 0.0
    distillation: ClassVar[float] = 0.5
    takes: ClassVar[str] = ""
    source: Path | None = None
    tensorboard: Path | None = None
    epochs: ClassVar[int] = 10
    batch_size: ClassVar[int] = 32
    learning_rate: ClassVar[float] = 0.001

    @abstractmethod
    def data(self, seed: int) -> Data:
        """Return the data; the same seed (and `source`) gives the same rows."""

    @abstractmethod
    def build(self) -> Any:
        """Return an untrained `keras.Model` whose inputs have the names of `inputs`; called after `data`."""

    @abstractmethod
    def score(self, outputs: Tensors, targets: Array) -> float:
        """Return the metric of these outputs; runs where TensorFlow must not be, so with numpy alone."""

    def build_teacher(self) -> Any:
        """Return an untrained larger `keras.Model` with the same inputs and outputs for the cloud; None is none."""
        return None

    def loss(self) -> Any:
        """Return the Keras loss that the default `train` uses."""
        return "mean_squared_error"

    def train(self, model: Any, rows: Rows, progress: Progress) -> None:
        """Train the model in place. The default is `model.fit` with Adam; chance is already seeded."""
        self.fit(model, rows, rows.targets, self.loss(), progress)

    def train_teacher(self, model: Any, rows: Rows, progress: Progress) -> None:
        """Train the larger model in place. The default trains it like the other."""
        self.train(model, rows, progress)

    def distill(self, model: Any, rows: Rows, taught: Tensors, progress: Progress) -> None:
        """Train the model in place with a teacher's outputs for the same rows beside the targets.

        The default, for one output, mixes both into one target, `distillation` being the teacher's share: for integer
        targets and as many outputs as classes by cross-entropy against the mixed distribution, else by `loss`.
        Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", at temperature 1.
        """
        (soft,) = taught.values()
        hard, loss = rows.targets, self.loss()
        if hard.dtype.kind in "iu" and soft.ndim == 2:
            hard, loss = np.eye(soft.shape[1], dtype=soft.dtype)[hard], "categorical_crossentropy"
        mixed = self.distillation * soft + (1 - self.distillation) * hard
        self.fit(model, rows, mixed.astype(soft.dtype), loss, progress)

    def fit(self, model: Any, rows: Rows, targets: Array, loss: Any, progress: Progress) -> None:
        """Run `model.fit` with Adam on the rows' inputs and these targets."""
        import keras

        told = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, _logs: progress("Training the model", epoch + 1, self.epochs)
        )
        callbacks = [told, keras.callbacks.TerminateOnNaN()]
        if self.tensorboard is not None:
            callbacks.append(keras.callbacks.TensorBoard(self.tensorboard / model.name))
        model.compile(optimizer=keras.optimizers.Adam(self.learning_rate), loss=loss)
        inputs = dict(rows.inputs)
        model.fit(
            inputs if len(inputs) > 1 else next(iter(inputs.values())),
            targets,
            batch_size=self.batch_size,
            epochs=self.epochs,
            verbose=0,
            callbacks=callbacks,
        )

    def preprocessing(self) -> tuple[Preprocessing, ...]:
        """Return what a caller must do to make the inputs; called after `data`, as `labels` is read after it."""
        return ()

    def weights(self, model: Any) -> dict[str, Array]:
        """Return the trained weights under the names that `weights.npz` gives them."""
        return {variable.path: np.asarray(variable.value) for variable in model.weights}

    def summary(self, model: Any) -> str:
        """Return a sentence about what was learned, for people; empty says nothing."""
        return ""

    def parameters(self) -> dict[str, str | int | float | bool]:
        """Return what the provenance tells of this recipe's settings."""
        return {"epochs": self.epochs, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
