"""An engine is imported when it opens its first file, and says then when it is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from toprope_shared.engines import find_engine, find_engines, import_now
from toprope_shared.engines.base import _KNOWN

LIST = """
import sys
from toprope_shared.engines import find_engines
found, _ = find_engines()
print(*found, *(engine.version for engine in found.values()))
print(*sorted({"onnxruntime", "ai_edge_litert", "tflite_runtime"} & set(sys.modules)))
"""
OPEN = """
from toprope_shared.engines import find_engine, find_engines, import_now
from toprope_shared.errors import LoadError
engine = find_engines(["onnxruntime"])[0]["onnxruntime"]
for use in (lambda: engine.open(b"", (), ()), lambda: import_now(engine), lambda: find_engine("onnxruntime")):
    try:
        use()
    except LoadError as error:
        print(error)
"""


def run(code: str, *path: Path) -> list[str]:
    words = [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(one) for one in path]!r}\n{code}"]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()


def test_engines_are_found_with_their_versions_and_not_imported() -> None:
    first, imported = run(LIST)
    assert "onnxruntime" in first.split()
    assert imported == ""


@pytest.mark.parametrize("name", find_engines()[0])
def test_the_version_that_is_told_is_the_engines_own(name: str) -> None:
    engine = find_engines([name])[0][name]
    before = engine.version
    import_now(engine)
    assert before == engine.version == find_engine(name).version
    assert (engine.name, engine.format) == (name, _KNOWN[name].format)


@pytest.mark.parametrize("line", ["raise ImportError('libgomp.so.1: not found')", "raise OSError('wrong machine')"])
def test_a_broken_engine_says_so_when_it_is_used(line: str, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text(line)
    said = run(OPEN, tmp_path)
    assert len(said) == 3
    for sentence in said:
        assert "onnxruntime is installed and can't be imported" in sentence
        assert "pip install --force-reinstall onnxruntime" in sentence
