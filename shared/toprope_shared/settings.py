"""Settings read once, at the command line: `toprope.toml`, then `TOPROPE_*`, then flags. Nobody else reads the environment."""

from __future__ import annotations

import importlib.util
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import platformdirs

from toprope_shared.errors import InputError

T = TypeVar("T", bound=msgspec.Struct)
FILE = "toprope.toml"


def home() -> Path:
    """Return the folder of all state: `TOPROPE_HOME`, or the platform's data folder."""
    chosen = os.environ.get("TOPROPE_HOME")
    return Path(chosen) if chosen else Path(platformdirs.user_data_dir("toprope"))


def load(cls: type[T], section: str, flags: Mapping[str, Any], *, file: Path | None = None) -> T:
    """Return one room's settings.

    Args:
        cls: a frozen msgspec Struct that forbids unknown fields.
        section: the table in the TOML file; `TOPROPE_<SECTION>_<FIELD>` in the environment.
        flags: values given on the command line; None is not given.
        file: the TOML file; without it `toprope.toml` in the current folder and then in `home()`.

    A room with the setting `traces` takes `otel` for it where nothing else is said and OpenTelemetry's own variables name a
    collector.

    Raises:
        InputError: the file can't be read, a name is unknown or a value does not fit; the text says where it came from.
    """
    values = _from_file(section, file)
    for field in msgspec.structs.fields(cls):
        text = os.environ.get(f"TOPROPE_{section}_{field.name}".upper())
        if text is not None:
            values[field.name] = text.split(",") if _is_list(field.type) else text
    values.update({name: value for name, value in flags.items() if value is not None})
    if not values.get("traces") and any(field.name == "traces" for field in msgspec.structs.fields(cls)):
        values["traces"] = "otel" if _has_collector() else ""
    try:
        return msgspec.convert(values, cls, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"the settings of [{section}] are wrong: {error}; see docs/reference-settings.md") from error


def _has_collector() -> bool:
    """Say whether OpenTelemetry's own variables name a collector for traces, and there is what sends to it.

    Source: OpenTelemetry, *Environment Variable Specification*.
    """
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    wanted = not off and any(os.environ.get(name) for name in names)
    # The parent first: looking for a part of what is not there is an error.
    return wanted and all(importlib.util.find_spec(name) for name in ("opentelemetry", "opentelemetry.sdk"))


def _is_list(kind: Any) -> bool:
    return "tuple" in str(kind)


def _from_file(section: str, file: Path | None) -> dict[str, Any]:
    candidates = [file] if file else [Path(FILE), home() / FILE]
    for path in candidates:
        try:
            table = tomllib.loads(path.read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"can't read the settings in {path}: {error}") from error
        found = table.get(section, {})
        if not isinstance(found, dict):
            raise InputError(f"{section} in {path} must be a table; write [{section}] and a line for each setting")
        return dict(found)
    if file:
        raise InputError(f"there is no settings file {file}")
    return {}
