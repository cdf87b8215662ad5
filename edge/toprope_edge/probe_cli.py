"""`toprope edge probe`: the device's try-out by hand, on any model file, with no agent and no release."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from toprope_shared.errors import DeviceError, InputError, ProbeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toprope_shared.manifest import Format
    from toprope_shared.probe import ProbeRequest, ProbeResult
    from toprope_shared.tensors import TensorSpec

MAX_THREADS = 256
TFLITE_MARK = b"TFL3"  # bytes 4 to 8 of a TFLite file
_HEAD = ("engine", "threads", "median", "p99", "memory", "error", "verdict")


def probe(
    files: list[Path] = typer.Argument(help="TFLite or ONNX files."),
    golden: Path = typer.Option(None, help="An .npz with in.<name> and out.<name>; without it inputs are made up."),
    engine: list[str] = typer.Option([], help="onnxruntime, litert or tflite-runtime; all installed by default."),
    threads: str = typer.Option("1", help="Engine threads to try, with commas."),
    shape: list[str] = typer.Option([], help="NAME=1,3,48,320: the sizes of a made-up input that the file leaves open."),
    tolerance: int = typer.Option(10_000, min=0, help="How far an output may be from the golden one, in millionths."),
    memory: int = typer.Option(4096, min=1, help="MiB that a file may take beyond the bare engine."),
    timeout: float = typer.Option(60.0, min=0.1, max=86_400.0, help="Seconds after which a try-out is killed."),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON array with an object for each try-out."),
) -> None:
    """Try model files out in a child process: load, golden outputs, latency and memory, with each engine and thread count."""
    from toprope_shared.digest import sha256_file
    from toprope_shared.probe import CPU_S, WALL_S, ProbeRequest

    counts = _thread_counts(threads)
    shapes = dict(_shape(text) for text in shape)
    if golden is not None:
        _require_file(golden)
    tried: list[_Tried] = []
    for file in files:
        _require_file(file)
        digest = sha256_file(file)
        for name in _engines(file, engine):
            for count in counts:
                request = ProbeRequest(
                    engine=name,
                    file=str(file.absolute()),
                    sha256=digest,
                    golden=str(golden.absolute()) if golden else "",
                    golden_sha256=sha256_file(golden) if golden else "",
                    shapes=shapes,
                    tolerance_ppm=tolerance,
                    stacked=None,
                    threads=count,
                    memory_bytes=memory << 20,
                    cpu_s=math.ceil(max(CPU_S, CPU_S / WALL_S * timeout)) * count,
                )
                tried.append(_try(file, request, timeout))
    _tell(tried, as_json=as_json)
    if not all(any(one.result for one in tried if one.file == file) for file in files):
        raise typer.Exit(2)


@dataclass(frozen=True, slots=True)
class _Tried:
    """One try-out: a result, or why there is none."""

    file: Path
    request: ProbeRequest
    result: ProbeResult | None = None
    refusal: ProbeError | None = None


def _try(file: Path, request: ProbeRequest, timeout_s: float) -> _Tried:
    from toprope_shared import probe as tryout

    try:
        return _Tried(file, request, result=tryout.probe(request, wall_s=timeout_s))
    except ProbeError as error:
        if not error.stage:
            raise  # no child was started: that is not the file's fault
        return _Tried(file, request, refusal=error)


def _require_file(file: Path) -> None:
    if not file.is_file():
        raise InputError(f"there is no file {file}")


def _thread_counts(text: str) -> list[int]:
    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(1 <= count <= MAX_THREADS for count in counts):
        raise InputError(f"--threads {text!r} is not a list of numbers from 1 to {MAX_THREADS}; write e.g. 1,2,4")
    return list(dict.fromkeys(counts))


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    parts = sizes.split(",") if sizes else []
    if not name or not all(part.isdecimal() for part in parts):
        raise InputError(f"--shape {text!r} is not a name with sizes; write e.g. x=1,3,48,320")
    return name, tuple(map(int, parts))


def _engines(file: Path, wanted: Sequence[str]) -> Sequence[str]:
    """Return the engines to try a file with.

    Raises:
        InputError: no engine has that name, or opens such files.
        DeviceError: none of those that would do is installed.
    """
    from toprope_shared.engines import ENGINE_NAMES, installed

    unknown = sorted(set(wanted) - set(ENGINE_NAMES))
    if unknown:
        raise InputError(f"there is no engine {unknown[0]!r}; choose among {', '.join(ENGINE_NAMES)}")
    format_ = _format(file)
    usable, missing = installed(format_)
    known = {*usable, *(one.name for one in missing)}
    if wanted and not known & set(wanted):
        raise InputError(f"{', '.join(wanted)} opens no .{format_} files; for {file} use {' or '.join(sorted(known))}")
    lacking = [one.why for one in missing if one.name in wanted or not usable]
    if lacking:
        raise DeviceError("; ".join(lacking))
    return [name for name in usable if not wanted or name in wanted]


def _format(file: Path) -> Format:
    from toprope_shared.manifest import Format

    suffix = file.suffix.lower().removeprefix(".")
    if suffix in set(Format):
        return Format(suffix)
    with file.open("rb") as opened:
        if opened.read(8)[4:] == TFLITE_MARK:
            return Format.TFLITE
    raise InputError(f"{file} is neither a .tflite nor an .onnx file; rename it to what it is")


def _tell(tried: list[_Tried], *, as_json: bool) -> None:
    from toprope_shared.probe import best

    results: dict[Path, list[ProbeResult]] = {}
    for one in tried:
        if one.result:
            results.setdefault(one.file, []).append(one.result)
    chosen = [best(found) for found in results.values()]
    if as_json:
        lines = [json.dumps(_as_object(one, chosen=_among(one.result, chosen))) for one in tried]
        typer.echo("[\n" + ",\n".join(lines) + "\n]")
        return
    for file in dict.fromkeys(one.file for one in tried):
        here = [one for one in tried if one.file == file]
        typer.echo(_title(file, here))
        for line in _table([_HEAD, *(_row(one, chosen=_among(one.result, chosen)) for one in here)]):
            typer.echo(f"  {line}")


def _among(result: ProbeResult | None, chosen: Sequence[ProbeResult]) -> bool:
    return any(result is one for one in chosen)


def _as_object(one: _Tried, *, chosen: bool) -> dict[str, Any]:
    request = one.request
    found: dict[str, Any] = {
        "file": str(one.file),
        "sha256": request.sha256,
        "engine": request.engine,
        "threads": request.threads,
        "passed": one.result is not None,
        "chosen": chosen,
    }
    if one.result:
        found |= {
            "runtime": one.result.runtime,
            "latency_us": round(one.result.latency_us, 2),
            "p99_us": round(one.result.p99_us, 2),
            "calls": one.result.calls,
            "memory_bytes": one.result.memory_bytes,
            "error_ppm": one.result.error_ppm if request.golden else None,
            "inputs": [_as_spec(spec) for spec in one.result.inputs],
            "outputs": [_as_spec(spec) for spec in one.result.outputs],
        }
    if one.refusal:
        found |= {
            "stage": one.refusal.stage,
            "reason": one.refusal.reason,
            "signal": one.refusal.signal or None,
            "exit_code": one.refusal.exit_code,
            "error": str(one.refusal),
            "stderr": one.refusal.tail,
        }
    return found


def _as_spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _title(file: Path, tried: list[_Tried]) -> str:
    known = next((one.result for one in tried if one.result), None)
    if known is None:
        return f"{file}: refused"
    inputs, outputs = (
        ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs)
        for specs in (known.inputs, known.outputs)
    )
    return f"{file}: {inputs} -> {outputs}"


def _row(one: _Tried, *, chosen: bool) -> tuple[str, ...]:
    name, count = one.request.engine, str(one.request.threads)
    if one.result is None:
        text = " ".join(str(one.refusal).split())
        return name, count, "", "", "", "", f"refused at {one.refusal.stage if one.refusal else ''}: {text}"
    error = f"{one.result.error_ppm} ppm" if one.request.golden else "-"
    memory = f"{one.result.memory_bytes / 2**20:.1f} MiB"
    timed = (f"{one.result.latency_us:.1f} µs", f"{one.result.p99_us:.1f} µs")
    return one.result.runtime, count, *timed, memory, error, "passed, chosen" if chosen else "passed"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows]
