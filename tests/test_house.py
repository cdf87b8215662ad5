"""The rooms of the house: who may import whom, and that a device needs nothing of the cloud's or the workshop's."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("shared", "edge", "cloud", "training")
# What a room may import of the others.
ALLOWED = {"shared": set[str](), "edge": {"shared"}, "cloud": {"shared"}, "training": {"shared"}}

LEAN = """
import importlib, importlib.abc, pathlib, sys

BLOCKED = ("tensorflow", "fastapi", "sqlalchemy", "toprope_cloud", "toprope_training")

class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not on a device")
        return None

sys.meta_path.insert(0, Wall())
count = 0
for room in ("shared", "edge"):
    base = pathlib.Path(sys.argv[1]) / room
    for file in sorted((base / f"toprope_{room}").rglob("*.py")):
        parts = file.relative_to(base).with_suffix("").parts
        importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        count += 1
print(count, sorted(name for name in sys.modules if name.split(".")[0] in BLOCKED))
"""


def imports(file: Path) -> Iterator[str]:
    """Yield every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield node.module or ""


def sources(room: str) -> list[Path]:
    """Return a room's files."""
    return sorted((ROOT / room / f"toprope_{room}").rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    forbidden = {f"toprope_{other}" for other in ROOMS if other not in {room, *ALLOWED[room]}}
    assert sources(room), f"there is nothing in {room}"
    found = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sources(room)
        for name in imports(file)
        if name.split(".")[0] in forbidden
    ]
    assert found == []


def test_a_device_needs_neither_tensorflow_nor_the_cloud() -> None:
    done = subprocess.run([sys.executable, "-c", LEAN, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1) == [str(len(sources("shared")) + len(sources("edge"))), "[]\n"]
