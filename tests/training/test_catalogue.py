"""Recipes are found by name or file, and what is wrong with one is said before anything is trained."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from toprope_shared.errors import InputError
from toprope_training import catalogue, provenance
from toprope_training.recipe import Recipe
from toprope_training.variants import VARIANTS

WriteRecipe = Callable[..., Path]


@pytest.mark.parametrize("name", catalogue.BUILT_IN)
def test_a_built_in_recipe_is_found_by_its_name(name: str) -> None:
    assert catalogue.load(name).name == name
    assert catalogue.source(name).is_file()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("    privacy = Privacy.NONE\n", "", "does not say its privacy; privacy is how much"),
        (
            "    privacy = Privacy.NONE\n",
            "    import toprope_shared.manifest as m\n    privacy, input_privacy = m.Privacy.NONE, (m.InputPrivacy('text'),)\n",
            "its input_privacy: fallback.inputs names 'text'; the inputs are ",
        ),
        ('name = "sum"', 'name = "a sum"', "its name 'a sum' does not fit"),
        ("(-1, 1)", "(-1, -1)", r"'total' has shape \[-1, -1\]; only the first"),
        ('("tflite-float32", "onnx-float32")', '("tflite-int4",)', "variants tflite-int4 are not among"),
        ('("tflite-float32", "onnx-float32")', '("onnx-int8",)', "onnx-int8 is made from onnx-float32"),
        ('("tflite-float32", "onnx-float32")', '("onnx-float32", "teacher-onnx-float32")', "has no `build_teacher`"),
        ('name = "sum"', 'name = "sum"\n    compared = ("sums",)', "`compared` names sums; its outputs are total"),
        ("outputs = (TensorSpec(", "outputs = ((", "does not fit the interface"),
        ("RECIPE = Sum()", "raise SystemExit(3)", "does not load: SystemExit: 3"),
        ("RECIPE = Sum()", "", "defines no object of a subclass of Recipe"),
        ("import numpy as np", "import numpy as np, no_such_module", "does not load: ModuleNotFoundError"),
        ("    def score(", "    def scored(", "does not load: TypeError: .*score"),
    ],
)
def test_a_mistake_in_a_recipe_is_a_sentence(write_recipe: WriteRecipe, old: str, new: str, sentence: str) -> None:
    path = write_recipe()
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=sentence):
        catalogue.load(str(path))


@pytest.mark.parametrize("reference", ["lines", "nowhere/recipe.py"])
def test_a_recipe_that_does_not_exist_is_refused(reference: str) -> None:
    with pytest.raises(InputError, match="there is no recipe"):
        catalogue.load(reference)


def test_a_recipe_that_imports_tensorflow_at_its_top_is_refused(write_recipe: WriteRecipe) -> None:
    path = write_recipe()
    path.write_text("import tensorflow\n" + path.read_text())
    program = f"from toprope_training import catalogue; catalogue.load({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "imports TensorFlow at its top; move the import into" in done.stderr


def test_the_held_out_digits_need_no_tensorflow() -> None:
    program = (
        "import sys; from toprope_training.recipes.digits import holdout; holdout(); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_outside_of_a_checkout_the_revision_is_unknown(tmp_path: Path) -> None:
    assert provenance.revision(tmp_path) == provenance.UNKNOWN


def test_a_recipe_that_takes_no_data_file_refuses_one(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes no --data"):
        catalogue.load(str(write_recipe()), data=tmp_path)


def test_what_a_recipes_code_raises_names_method_and_line(write_recipe: WriteRecipe) -> None:
    path = write_recipe()
    path.write_text(path.read_text().replace("rng = np.random", "seed['x']\n        rng = np.random"))
    recipe = catalogue.load(str(path))
    line = path.read_text().splitlines().index("        seed['x']") + 1
    with (
        pytest.raises(InputError, match=rf"the recipe sum failed in data \(line {line} of my_recipe.py\): TypeError"),
        catalogue.blame(recipe, "data"),
    ):
        recipe.data(0)


def test_the_docs_name_everything_that_a_recipe_may_say_and_every_gate() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference-recipes.md").read_text()
    said = [name for name in {**Recipe.__annotations__, **vars(Recipe)} if not name.startswith("_")]
    assert [name for name in said if f"`{name}" not in text] == []
    gates = [
        "runtime",
        "flex",
        "onnx checker",
        "parity on <engine>",
        "<metric> drop on <engine>",
        "speed",
        "size",
        "runs on <engine>",
        "conversion",
        "examples",
        "against the student",
        "golden on <engine>",
    ]
    assert [name for name in (*gates, *VARIANTS, *catalogue.BUILT_IN) if name not in text] == []
