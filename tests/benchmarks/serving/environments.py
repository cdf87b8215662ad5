"""An environment for each server that ours is measured against, made once below `.cache/peers/serving` from `peers.toml`.

    python -m tests.benchmarks.serving.environments [names]

One that can't be made is told with the reason, kept beside it, and tried again by this command alone; nothing fails for it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

ROOT = Path(__file__).parents[3]
FILE = Path(__file__).with_name("peers.toml")
FOLDER = ROOT / ".cache" / "peers" / "serving"
SYSTEM_PYTHON = "/usr/bin/python3.11"
INSTALL_S = 1200
_READY, _WHY = "ready", "why-not"


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `peers.toml` says of one server; the file explains the fields."""

    title: str
    packages: tuple[str, ...]
    shown: tuple[str, ...]
    settings: str
    first: tuple[str, ...] = ()
    python: Literal["own", "system"] = "own"


class AbsentError(Exception):
    """A server can't be had on this machine; the text is the reason."""


def peers() -> Mapping[str, Peer]:
    """Return every server by name."""
    return msgspec.convert(tomllib.loads(FILE.read_text()), dict[str, Peer])


def ensure(name: str, peer: Peer, *, again: bool = False) -> Path:
    """Return the environment's folder, made now where it is not there or is of other packages.

    Args:
        again: also try what could not be made before.

    Raises:
        AbsentError: it can't be made.
    """
    folder = FOLDER / name
    asked = hashlib.sha256(msgspec.json.encode(peer.first + peer.packages + (peer.python,))).hexdigest()
    why = FOLDER / f"{name}.{_WHY}"
    if (folder / _READY).exists() and (folder / _READY).read_text() == asked:
        return folder
    if why.exists() and not again and why.read_text().startswith(asked):
        raise AbsentError(why.read_text().partition("\n")[2])
    try:
        _make(folder, peer)
    except AbsentError as error:
        why.write_text(f"{asked}\n{error}")
        raise
    why.unlink(missing_ok=True)
    (folder / _READY).write_text(asked)
    return folder


def _make(folder: Path, peer: Peer) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = SYSTEM_PYTHON if peer.python == "system" else sys.executable
    if not Path(python).exists():
        raise AbsentError(
            f"{python} is not there: it needs the distribution's own Python 3.11 (apt-get install python3.11)"
        )
    _run([python, "-m", "venv", "--without-pip", str(folder)])
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    for packages in filter(None, (peer.first, peer.packages)):
        _run([*pip, "--disable-pip-version-check", *packages])


def _run(words: list[str]) -> None:
    nice = shutil.which("nice")
    low = [nice, "-n", "19", *words] if nice else words
    try:
        done = subprocess.run(low, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    except subprocess.TimeoutExpired as error:
        raise AbsentError(f"its installation did not end within {INSTALL_S} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line]
        raise AbsentError(f"its installation failed: {(lines or ['no reason given'])[-1].strip()[:200]}")


def site_packages(folder: Path) -> Path:
    """Return where an environment's packages are."""
    return next((folder / "lib").glob("python3.*")) / "site-packages"


def versions(folder: Path, names: tuple[str, ...]) -> str:
    """Return `name version` of each installed package."""
    found = []
    for name in names:
        wanted = name.replace("-", "_").lower()
        for one in site_packages(folder).glob("*.dist-info"):
            package, _, version = one.name.removesuffix(".dist-info").partition("-")
            if package.lower() == wanted:
                found.append(f"{name} {version}")
    return ", ".join(found)


def surroundings(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a process in this environment: its programs first, nobody told of its use."""
    silent = {"RAY_USAGE_STATS_ENABLED": "0", "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    path = f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **silent, "PATH": path, "VIRTUAL_ENV": str(folder), **more}


def main(names: list[str]) -> None:
    """Make the environments that are named, or all."""
    known = peers()
    for name in names or known:
        try:
            folder = ensure(name, known[name], again=True)
        except AbsentError as error:
            print(f"{name}: {error}", flush=True)
        else:
            print(f"{name}: {versions(folder, known[name].shown)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
