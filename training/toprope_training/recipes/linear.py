"""The smallest recipe: a straight line, learned by gradient descent that is written out.

1,000 points with x uniform in [-10, 10) and y = 2x + noise, the noise normal with mean 0 and standard deviation 0.5; 800 to
learn from, 200 held out. The best possible mean squared error is the noise's variance, 0.25. The int8 variants know only
the range of the training points: an x outside of [-10, 10) is clipped to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toprope_shared.manifest import Metric, Privacy
from toprope_shared.tensors import Array, Tensors, TensorSpec
from toprope_training.recipe import Data, Progress, Recipe, Rows, mean_squared_error

POINTS = 1000
HELD_OUT = 200
REACH = 10.0
SLOPE = 2.0
NOISE = 0.5


class Linear(Recipe):
    """y = a x + b, with a and b from TensorFlow's GradientTape and plain SGD on the mean squared error."""

    name = "linear"
    description = "A straight line through noisy points of y = 2x."
    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)
    metric = Metric("mse", higher_is_better=False)
    privacy = Privacy.FULL
    accuracy_budget = 0.02
    required = 0.35
    # Dynamic int8 quantizes no weights as few as these, and float16 of ONNX would only wrap two numbers in casts.
    variants = ("tflite-float32", "tflite-float16", "tflite-int8", "onnx-float32", "onnx-int8")
    epochs = 300
    batch_size = POINTS - HELD_OUT
    learning_rate = 0.01

    def data(self, seed: int) -> Data:
        rng = np.random.default_rng(seed)
        x = rng.uniform(-REACH, REACH, (POINTS, 1))
        y = SLOPE * x + rng.normal(0, NOISE, (POINTS, 1))
        rows = Rows({"x": x.astype(np.float32)}, y.astype(np.float32))
        return Data(rows.take(np.arange(HELD_OUT, POINTS)), rows.take(np.arange(HELD_OUT)))

    def build(self) -> Any:
        import keras

        x = keras.Input((1,), name="x")
        return keras.Model(x, keras.layers.Dense(1, name="line")(x))

    def train(self, model: Any, rows: Rows, progress: Progress) -> None:
        """Take `epochs` steps down the gradient over all points."""
        import keras
        import tensorflow as tf

        x, y = tf.constant(rows.inputs["x"]), tf.constant(rows.targets)
        optimizer = keras.optimizers.SGD(self.learning_rate)
        for step in range(1, self.epochs + 1):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            progress("Following the gradient", step, self.epochs)

    def score(self, outputs: Tensors, targets: Array) -> float:
        return mean_squared_error(outputs["y"], targets)

    def weights(self, model: Any) -> dict[str, Array]:
        """Return slope `a` and intercept `b` as scalars, float32."""
        kernel, bias = model.get_layer("line").get_weights()
        return {"a": np.asarray(kernel[0, 0]), "b": np.asarray(bias[0])}

    def summary(self, model: Any) -> str:
        learned = self.weights(model)
        return f"learned a = {learned['a']:.4f} and b = {learned['b']:.4f}; its points were made with a = 2 and b = 0"


RECIPE = Linear()
