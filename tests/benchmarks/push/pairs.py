"""Makes pairs of model files to measure deltas on: one small image classifier and what further training makes of it.

    python tests/benchmarks/push/pairs.py FOLDER

Writes FOLDER/base.*, FOLDER/head.* (only the last layer learnt on), FOLDER/tuned.* (every layer, gently), FOLDER/learnt.*
(every layer, at the first training's rate) and FOLDER/other.* (another seed), each as TFLite and ONNX in float32, float16
and int8. Holds TensorFlow; the data are scikit-learn's handwritten digits, which travel with it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

from toprope_training import convert, quantize
from toprope_training.steps import Convert, Quantize

FIRST_ROWS = 1000
FROM_SAVED_MODEL = ("tflite-float32", "tflite-float16", "tflite-dynamic-int8", "tflite-int8", "onnx-float32")
FROM_ONNX = ("onnx-float16", "onnx-int8")


def build(seed: int) -> Any:
    """Return an untrained classifier of about 600,000 weights: image [-1, 8, 8, 1] -> probs [-1, 10]."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 1), name="image")
    value = image
    for width in (64, 128, 128):
        value = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(value)
        value = keras.layers.BatchNormalization()(value)
        value = keras.layers.ReLU()(value)
    value = keras.layers.DepthwiseConv2D(3, strides=2, padding="same")(value)
    value = keras.layers.Dense(192, activation="relu")(keras.layers.Flatten()(value))
    return keras.Model(image, keras.layers.Dense(10, activation="softmax", name="probs")(value))


def learn(model: Any, rows: slice, *, epochs: int, rate: float) -> Any:
    """Train a model in place and return it."""
    digits = load_digits()
    images = (digits.images[rows, :, :, None] / 16).astype(np.float32)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(images, digits.target[rows], batch_size=32, epochs=epochs, verbose=0)
    return model


def copy_of(model: Any) -> Any:
    """Return a model with the same weights, every layer trainable."""
    twin = build(0)
    twin.set_weights(model.get_weights())
    return twin


def write(model: Any, name: str, folder: Path) -> None:
    """Write a model in every format and precision as `name.PRECISION.FORMAT`."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        rows = load_digits().images[:64, :, :, None] / 16
        np.savez(work / "rows.npz", **{"in.image": rows.astype(np.float32)})
        saved = str(work / "saved")
        model.export(saved, verbose=False)  # with the signature `serving_default`
        convert.run(Convert(saved, str(work / "rows.npz"), FROM_SAVED_MODEL, place), lambda *_: None)
        for variant in FROM_ONNX:
            quantize.run(Quantize(str(work / "onnx-float32.onnx"), str(work / "rows.npz"), variant, place), lambda *_: None)
        for file in (*work.glob("tflite-*.tflite"), *work.glob("onnx-*.onnx")):
            format_, precision = file.stem.split("-", 1)
            (folder / f"{name}.{precision}.{format_}").write_bytes(file.read_bytes())


def main() -> None:
    """Train, train on, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    base = learn(build(1), slice(FIRST_ROWS), epochs=8, rate=1e-3)
    head = copy_of(base)
    for layer in head.layers[:-1]:
        layer.trainable = False
    write(base, "base", folder)
    write(learn(head, slice(None), epochs=2, rate=1e-3), "head", folder)
    write(learn(copy_of(base), slice(None), epochs=1, rate=1e-5), "tuned", folder)
    write(learn(copy_of(base), slice(None), epochs=2, rate=1e-3), "learnt", folder)
    write(learn(build(2), slice(FIRST_ROWS), epochs=8, rate=1e-3), "other", folder)


if __name__ == "__main__":
    main()
