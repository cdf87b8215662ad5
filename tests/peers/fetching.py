"""Other people's packages, fetched once into a cache: environments, wheels and npm packages, as `pins.toml` names them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "peers"
PINS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("pins.toml").read_text())
# What an environment was made of, written last: without it, or with other words in it, the environment is made anew.
STAMP = "pins"
FETCH_S, INSTALL_S = 600, 900


def environment(name: str) -> Path:
    """Return the Python of an environment that has its packages and nothing of ours; skips the test where they can't be got."""
    folder, wanted = CACHE / name, PINS["environments"][name]
    python = folder / "bin" / "python"
    stamp = folder / STAMP
    if not stamp.exists() or stamp.read_text() != "\n".join(wanted):
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], f"an environment for {name}", INSTALL_S)
        words = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        _run(words, ", ".join(wanted), INSTALL_S)
        stamp.write_text("\n".join(wanted))
    return python


def unpacked(name: str) -> Path:
    """Return the unpacked folder of a package; skips the test where it can't be fetched."""
    fetch, pin = (_npm, PINS["npm"][name]) if name in PINS["npm"] else (_wheel, PINS["wheels"][name])
    folder = CACHE / name
    stamp = folder / STAMP
    if not stamp.exists() or stamp.read_text() != pin:
        partial = CACHE / f".{name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fetch(pin, partial)
        (partial / STAMP).write_text(pin)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return folder


def _wheel(pin: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    _run([*command, pin], pin, FETCH_S)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)  # noqa: S202 - a wheel from the package index, and zipfile keeps names inside
    wheel.unlink()


def _npm(pin: str, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm is not installed, so {pin} can't be fetched")
    _run([npm, "pack", "--silent", "--pack-destination", str(folder), pin], pin, FETCH_S)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    archive.unlink()


def _run(command: list[str], what: str, seconds: float) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    if done.returncode:
        pytest.skip(f"{what} can't be fetched here: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
