"""Handwritten digits: two convolutional networks on scikit-learn's 1,797 real images of 8x8 grey values.

The grey values 0..16 are divided by 16, so a caller sends 0..1. A quarter of the images, drawn with the seed, is held out.
The data come with scikit-learn (load_digits, the test part of the UCI set "Optical Recognition of Handwritten Digits",
CC BY 4.0); nothing is downloaded. `holdout` needs no TensorFlow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toprope_shared.manifest import Metric, Preprocessing, Privacy
from toprope_shared.tensors import Array, Tensors, TensorSpec
from toprope_training.recipe import Data, Recipe, Rows, accuracy
from toprope_training.variants import VARIANTS

WHITE = 16.0
HELD_OUT = 0.25


class Digits(Recipe):
    """About 6,000 weights for the edge; the teacher has about 29,000, looks at every pixel and answers in the cloud."""

    name = "digits"
    description = "Handwritten digits 0 to 9 in 8x8 grey images, values 0 to 1."
    inputs = (TensorSpec("image", "FP32", (-1, 8, 8, 1)),)
    outputs = (TensorSpec("probs", "FP32", (-1, 10)),)
    labels = tuple("0123456789")
    metric = Metric("accuracy", higher_is_better=True)
    privacy = Privacy.FULL
    accuracy_budget = 0.02
    required = 0.94
    variants = (*VARIANTS, "teacher-onnx-float32")
    epochs = 20
    batch_size = 32
    learning_rate = 0.002

    def data(self, seed: int) -> Data:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (digits.images / WHITE).astype(np.float32)[..., np.newaxis]
        rows = Rows({"image": images}, digits.target.astype(np.int64))
        order = np.random.default_rng(seed).permutation(len(rows))
        held_out = round(len(rows) * HELD_OUT)
        return Data(rows.take(order[held_out:]), rows.take(order[:held_out]))

    def build(self) -> Any:
        import keras
        from keras import layers

        image = keras.Input((8, 8, 1), name="image")
        x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(image)
        x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
        x = layers.Flatten()(layers.MaxPooling2D()(x))
        return keras.Model(image, layers.Dense(10, activation="softmax", name="probs")(x))

    def build_teacher(self) -> Any:
        import keras
        from keras import layers

        image = keras.Input((8, 8, 1), name="image")
        x = layers.Conv2D(32, 3, padding="same", activation="relu")(image)
        x = layers.BatchNormalization()(x)
        x = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
        x = layers.Flatten()(layers.Dropout(0.5)(x))
        return keras.Model(image, layers.Dense(10, activation="softmax", name="probs")(x))

    def preprocessing(self) -> tuple[Preprocessing, ...]:
        return (Preprocessing("image", "grey values 0 (paper) to 16 (ink), divided by 16; one channel"),)

    def loss(self) -> Any:
        return "sparse_categorical_crossentropy"

    def score(self, outputs: Tensors, targets: Array) -> float:
        return accuracy(outputs["probs"], targets)


RECIPE = Digits()


def holdout(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the images that a training with this seed never saw, float32 [n, 8, 8, 1] in 0..1, and labels, int64 [n]."""
    rows = RECIPE.data(seed).holdout
    return rows.inputs["image"], rows.targets
