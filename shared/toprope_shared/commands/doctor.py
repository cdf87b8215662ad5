"""`toprope doctor`: looks at this machine and says what is wrong and what to do about it.

Each installed room may look at more: it names a `findings.Check` in the entry-point group `toprope.checks`, as the edge does
for an enrolled device. What is slow to import is imported when the command runs.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import typer

from toprope_shared.commands.client import AGENT_URL, CLOUD_URL
from toprope_shared.commands.findings import GROUP, Asked, Finding, Level
from toprope_shared.commands.reach import BROKER, check_broker, check_url
from toprope_shared.errors import TopropeError

MIN_PYTHON = (3, 11)
# The oldest glibc for which all engines have wheels (manylinux_2_28).
MIN_GLIBC = (2, 28)
MIN_FREE_BYTES = 500_000_000

doctor_app = typer.Typer()


@doctor_app.command("doctor")
def doctor(
    broker: str | None = typer.Option(
        None, help=f"host:port of the broker that must be reachable; looks at {BROKER} otherwise."
    ),
    cloud: str | None = typer.Option(
        None, help=f"URL of the cloud that must be reachable; looks at {CLOUD_URL} otherwise."
    ),
    agent: str | None = typer.Option(
        None, help=f"URL of the agent that must be reachable; looks at {AGENT_URL} otherwise."
    ),
    device: str | None = typer.Option(None, help="The name that this device was enrolled with."),
    settings: Path | None = typer.Option(None, help="Another toprope.toml."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Look at this machine and say what is missing; exit code 1 if something essential is."""
    findings = examine(Asked(device, settings, broker, cloud, agent))
    failed = any(finding.level is Level.ERROR for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "findings": [asdict(one) for one in findings]}, indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.level:<6}{finding.text}" + (f"; {finding.advice}" if finding.advice else ""))
    if failed:
        raise typer.Exit(1)


def examine(asked: Asked) -> list[Finding]:
    """Return everything that was found, the machine first."""
    from toprope_shared.clock import SystemClock

    findings = [check_python(), check_glibc(), check_numpy(), *check_engines()]
    special = check_rooms(asked)
    findings += special
    covered = {finding.about for finding in special}
    if "state" not in covered:
        findings += check_home()
    if "broker" not in covered:
        findings.append(check_broker(asked.broker or BROKER, Level.ERROR if asked.broker else Level.WARNING))
    if "cloud" not in covered:
        level = Level.ERROR if asked.cloud else Level.WARNING
        findings += check_url("cloud", asked.cloud or CLOUD_URL, level, now=SystemClock().now())
    if "agent" not in covered:
        findings += check_url("agent", asked.agent or AGENT_URL, Level.ERROR if asked.agent else Level.WARNING)
    return findings


def check_rooms(asked: Asked) -> list[Finding]:
    """Return what the installed rooms have to say; a room that can't look is a finding of its own."""
    import importlib.metadata

    findings: list[Finding] = []
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            findings += entry.load()(asked)
        except (ImportError, TopropeError) as error:
            findings.append(Finding(entry.name, Level.ERROR, f"the {entry.name} can't be looked at: {error}"))
    return findings


def check_python(version: tuple[int, ...] | None = None) -> Finding:
    """Hold the interpreter's version, or the one that is given, against the oldest that is supported."""
    import sys

    found = version or tuple(sys.version_info[:3])
    text = f"Python {'.'.join(map(str, found))}"
    if found >= MIN_PYTHON:
        return Finding("python", Level.OK, text)
    oldest = ".".join(map(str, MIN_PYTHON))
    return Finding("python", Level.ERROR, f"{text} is too old", f"install Python {oldest} or newer")


def check_glibc(libc: tuple[str, str] | None = None) -> Finding:
    """Hold the C library (name, version) against what the engines' wheels need."""
    import platform

    name, version = libc or platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if name == "glibc" and numbers >= MIN_GLIBC:
        return Finding("glibc", Level.OK, f"glibc {version}")
    wanted = ".".join(map(str, MIN_GLIBC))
    text = f"the C library is {name or 'unknown'} {version}".rstrip()
    return Finding("glibc", Level.WARNING, text, f"the engines' wheels need glibc {wanted}")


def check_numpy(numpy: str | None = None, tflite_runtime: str | None = None) -> Finding:
    """Hold numpy's version against tflite-runtime's, which was built against numpy 1; what is not given is looked up."""
    numpy = numpy or _version("numpy")
    tflite_runtime = tflite_runtime or _version("tflite-runtime")
    if not numpy:
        return Finding("numpy", Level.ERROR, "numpy is not installed", "install toprope-shared with its dependencies")
    if tflite_runtime and not numpy.startswith(("0.", "1.")):
        text = f"numpy {numpy} does not suit tflite-runtime {tflite_runtime}, which fails at the first interpreter"
        return Finding("numpy", Level.ERROR, text, "pip install 'numpy<2', or use ai-edge-litert instead")
    beside = f", which suits tflite-runtime {tflite_runtime}" if tflite_runtime else ""
    return Finding("numpy", Level.OK, f"numpy {numpy}{beside}")


def _version(distribution: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def check_engines() -> list[Finding]:
    """Say which engines run here; one is enough."""
    from toprope_shared.engines import find_engines, import_now
    from toprope_shared.errors import LoadError

    found, missing = find_engines()
    findings = []
    for name, engine in found.items():
        try:
            import_now(engine)
        except LoadError as error:
            findings.append(Finding("engines", Level.ERROR, f"engine {name} is broken", str(error)))
        else:
            findings.append(Finding("engines", Level.OK, f"engine {name} {engine.version} ({engine.format} files)"))
    # Without an engine of its own the device still answers with another, so a missing one is no fault.
    findings += [Finding("engines", Level.WARNING, f"engine {gap.name} can't be used", gap.why) for gap in missing]
    if not found:
        advice = "pip install onnxruntime or ai-edge-litert"
        findings.append(Finding("engines", Level.ERROR, "no engine can run a model here", advice))
    return findings


def check_home(home: Path | None = None) -> list[Finding]:
    """Say whether state can be written and how much room there is."""
    from toprope_shared import settings

    return check_folder(home or settings.home(), "set TOPROPE_HOME to one that can")


def check_folder(folder: Path, advice: str) -> list[Finding]:
    """Say whether a folder of state, or the nearest one above it that is there, can be written, and how much room it has.

    Args:
        folder: of all state; nothing is left in it.
        advice: what to do when it can't be written.
    """
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if why := _unwritable(place):
        findings = [Finding("state", Level.ERROR, f"the folder of state {folder} can't be written ({why})", advice)]
    else:
        findings = [Finding("state", Level.OK, f"the folder of state {folder} can be written")]
    free = shutil.disk_usage(place).free
    text = f"{free // 1_000_000} MB are free there"
    if free < MIN_FREE_BYTES:
        return [*findings, Finding("disk", Level.WARNING, text, "a device keeps two releases; make room")]
    return [*findings, Finding("disk", Level.OK, text)]


def _unwritable(place: Path) -> str:
    """Return why a folder can't be written; "" when it can. A read-only or full disk shows only when something is written."""
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return "permission denied" if place.is_dir() else "it is no folder"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return ""
