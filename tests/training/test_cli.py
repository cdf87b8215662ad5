"""What people see of `toprope train` and `toprope release`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from toprope_shared.errors import InputError
from toprope_training import catalogue
from toprope_training.bundle import Bundle
from toprope_training.cli import release_app, train_app
from toprope_training.progress import shown

DOCS = Path(__file__).parents[2] / "docs" / "reference-recipes.md"


def test_the_list_names_the_built_in_recipes() -> None:
    result = CliRunner().invoke(train_app, ["--list"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(catalogue.BUILT_IN)


def test_training_without_a_folder_says_how_to_call_it() -> None:
    result = CliRunner().invoke(train_app, ["linear"])
    assert isinstance(result.exception, InputError)
    assert "toprope train digits --out" in str(result.exception)


def test_the_recipe_in_the_docs_trains_and_tells_its_steps(tmp_path: Path) -> None:
    recipe = tmp_path / "from_docs.py"
    recipe.write_text(DOCS.read_text().split("```python\n")[1].split("```")[0])
    result = CliRunner().invoke(train_app, [str(recipe), "--out", str(tmp_path / "out"), "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert "Training the model …" in result.stderr
    assert "sum 1.0.0" in result.stdout
    assert "tflite-float32" in result.stdout
    assert Bundle.open(tmp_path / "out").manifest.provenance.seed == 3


def test_a_release_is_shown_with_variants_and_gates(linear: tuple[Bundle, str]) -> None:
    result = CliRunner().invoke(release_app, ["show", "--no-report", str(linear[0].folder)])
    assert result.exit_code == 0
    for variant in linear[0].manifest.variants:
        assert variant.name in result.stdout
        assert f"{variant.artifact.length:,}" in result.stdout
    assert "linear 1.0.0 (release counter 1800000000)" in result.stdout
    assert "golden on onnxruntime" in result.stdout


def test_a_broken_bundle_is_refused_with_its_name(tmp_path: Path) -> None:
    result = CliRunner().invoke(release_app, ["show", str(tmp_path)])
    assert isinstance(result.exception, InputError)
    assert "manifest.json" in str(result.exception)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_names_each_step(terminal: bool) -> None:
    screen = io.StringIO()
    with shown(console=Console(file=screen, force_terminal=terminal, width=100)) as progress:
        progress("Loading the data", 0, 0)
        for step in range(3):
            progress("Training the model", step, 3)
    assert "Loading the data" in screen.getvalue()
    assert "Training the model" in screen.getvalue()
