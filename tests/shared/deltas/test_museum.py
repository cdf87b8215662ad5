"""Deltas of earlier versions, as devices may still receive them: today's code must read them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from toprope_shared.deltas import apply
from toprope_shared.digest import sha256

# By version: made once by that version, never again. Version 1 was on no device. `BASE` is the file that they are made against.
BASE = bytes((number * number + 7 * number) % 251 for number in range(5000))
TARGETS = {2: "84d7a468a5bf20b677c03ad399cd0852d98f331c165a7580ccf4b88b87706faf"}
DELTAS = {
    2: """
VFJETAACMuflafHGg/uE16Ropb8gtogn+iQGCUlJATMEAGSkDQzQE1jwFcgBAmgBBBBkAAACFQQIAAECEgIIAAECFAEIAAEAAQIDAAQFAgBiwAwMoAYDyAGg
BrAJEcgBAACwAZADACB2dQEAZAJhIG5ldyBoZWFkLCBsb25nZXJnYXBhIHRhaWwgb2YgaXRzIG93bgEAOhJdYWBgBRUDABQDzwlRkdEVT5PLFVmN3R1XmQwM
CwoJCQgHBgYFBAMDAgEAASACAAIAEAEAACIgAQECAhIAJvEKJ2MAwHRrA4Lpe/W3xv318QmoZRmCPEhhqvsCDwYNAjB22gfu0Ane+ASeYCACfQAAKAACBAYI
AgBUQAWCoIoWIMhtAAAgAAEDAAIAwE2FO7khYCACdQAAOAIAAAAAAAABABZVFSM=
""",
}


@pytest.mark.parametrize("version", DELTAS)
def test_a_delta_of_every_version_is_still_read(tmp_path: Path, version: int) -> None:
    (tmp_path / "base").write_bytes(BASE)
    (tmp_path / "delta").write_bytes(base64.b64decode(DELTAS[version]))
    apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out", target=TARGETS[version])
    assert sha256((tmp_path / "out").read_bytes()) == TARGETS[version]
