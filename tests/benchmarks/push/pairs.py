"""Makes pairs of model files to measure deltas on: our own recipes' models, and what further training makes of them.

    python -m tests.benchmarks.push.pairs FOLDER [RECIPE ...]

Writes FOLDER/RECIPE.CHANGE.PRECISION.FORMAT in float32 and int8, TFLite and ONNX. CHANGE is `base`, trained as the recipe says
on three quarters of its rows, and what becomes of it with all rows: `head` (only the last layer learns on), `tuned` (every
layer, one epoch at a hundredth of the rate), `learnt` (every layer, two epochs at the full rate); `retrained` is the recipe
from the beginning with another seed. Holds TensorFlow; the data come with scikit-learn and chatterbot-corpus.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from toprope_training import arrays, convert, quantize, train
from toprope_training.recipe import Recipe, Rows
from toprope_training.recipes import digits, support
from toprope_training.steps import Convert, Quantize

BASE_SHARE = 0.75
CONVERTED = ("tflite-float32", "tflite-int8", "onnx-float32")
TYPICAL = 64


class Wide(digits.Digits):
    """The digits recipe with about 600,000 weights, the size of a small network for cameras."""

    name = "wide"
    epochs = 8
    learning_rate = 0.001

    def build(self) -> Any:
        image = keras.Input((8, 8, 1), name="image")
        value = image
        for width in (64, 128, 128):
            value = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(value)
            value = keras.layers.ReLU()(keras.layers.BatchNormalization()(value))
        value = keras.layers.DepthwiseConv2D(3, strides=2, padding="same")(value)
        value = keras.layers.Dense(192, activation="relu")(keras.layers.Flatten()(value))
        return keras.Model(image, keras.layers.Dense(10, activation="softmax", name="probs")(value))


RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (Wide(), digits.RECIPE, support.RECIPE)}


def learn(recipe: Recipe, model: Any, rows: Rows, *, epochs: int, slower: float = 1.0) -> Any:
    """Train a model in place as its recipe does, for so many epochs, at a part of its rate; return it."""
    varied = copy.copy(recipe)
    vars(varied).update(epochs=epochs, learning_rate=recipe.learning_rate / slower)
    varied.train(model, rows, lambda *_: None)
    return model


def copy_of(recipe: Recipe, model: Any, *, head: bool = False) -> Any:
    """Return a model with the same weights; with `head` only the last layer that has weights can learn."""
    twin = recipe.build()
    twin.set_weights(model.get_weights())
    weighty = [layer for layer in twin.layers if layer.weights]
    for layer in weighty[:-1] if head else ():
        layer.trainable = False
    return twin


def write(recipe: Recipe, model: Any, rows: Rows, name: str, folder: Path) -> None:
    """Write a model in every format and precision as `name.PRECISION.FORMAT`."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        typical = rows.take(np.arange(TYPICAL))
        arrays.save(work / "rows.npz", arrays.prefixed("in", typical.inputs))
        serve = train.endpoint(model, recipe.inputs, recipe.outputs)
        train.save_model(work / "saved", model, serve)
        convert.run(Convert(str(work / "saved"), str(work / "rows.npz"), CONVERTED, place), lambda *_: None)
        source = str(work / "onnx-float32.onnx")
        quantize.run(Quantize(source, str(work / "rows.npz"), "onnx-int8", place), lambda *_: None)
        for file in (*work.glob("tflite-*.tflite"), *work.glob("onnx-*.onnx")):
            format_, precision = file.stem.split("-", 1)
            (folder / f"{name}.{precision}.{format_}").write_bytes(file.read_bytes())


def make(recipe: Recipe, folder: Path) -> None:
    """Train, train on, write."""
    keras.utils.set_random_seed(1)
    rows = recipe.data(0).train
    chosen = np.random.default_rng(0).permutation(len(rows))[: round(BASE_SHARE * len(rows))]
    first = rows.take(chosen)
    base = learn(recipe, recipe.build(), first, epochs=recipe.epochs)
    made = {
        "base": base,
        "head": learn(recipe, copy_of(recipe, base, head=True), rows, epochs=2),
        "tuned": learn(recipe, copy_of(recipe, base), rows, epochs=1, slower=100.0),
        "learnt": learn(recipe, copy_of(recipe, base), rows, epochs=2),
    }
    keras.utils.set_random_seed(2)
    made["retrained"] = learn(recipe, recipe.build(), first, epochs=recipe.epochs)
    for change, model in made.items():
        write(recipe, model, rows, f"{recipe.name}.{change}", folder)
        print(f"  … {recipe.name}: {change} written", flush=True)


def main() -> None:
    """Make the pairs of the recipes that are named, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipes", nargs="*", help=f"of {', '.join(RECIPES)}")
    words = parser.parse_args()
    words.folder.mkdir(parents=True, exist_ok=True)
    for name in words.recipes or RECIPES:
        make(RECIPES[name], words.folder)


if __name__ == "__main__":
    main()
