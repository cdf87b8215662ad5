"""Rebuilding takes the memory that `rebuilding` promises, however long the files are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from toprope_shared.deltas.coding import Coding, coded, squeeze
from toprope_shared.deltas.layout import PREFIX_BYTES, Group, Header, Kind, Plan, Section, encode
from toprope_shared.digest import sha256, sha256_file

MIB = 1024 * 1024
PROMISED = 32 * MIB

# In a process of its own: what zstd allocates is not Python's, so only the process's peak tells. Not getrusage's: that one
# starts with the peak of the process that started it.
APPLY = """
import re, sys
from pathlib import Path
from toprope_shared.deltas import apply

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

base, delta, out = map(Path, sys.argv[1:4])
before = peak()
apply(base, delta, out, target=sys.argv[4])
print(peak() - before)
"""


def test_100_mib_are_rebuilt_in_less_than_32_mib(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = rng.bytes(5 * MIB) * 20
    changes = np.zeros(25 * MIB, np.uint8)
    changes[::1000] = 3
    parts = [
        (Coding(Kind.SUBTRACT, 4, 8), 30 * MIB, (np.frombuffer(base, np.uint8, 25 * MIB) + changes).tobytes()),
        (Coding(Kind.SUBTRACT, 1, 2, (4000, 4096), 7), 3, (np.frombuffer(base, np.uint8, 25 * MIB, 3) + changes).tobytes()),
        (Coding(Kind.COPY), 50 * MIB, base[50 * MIB : 75 * MIB]),
        (Coding(Kind.LITERAL), 0, (rng.bytes(5 * MIB) + base[:MIB] * 8)[: 10 * MIB]),
        (Coding(Kind.LITERAL), 0, base[: 4 * MIB] + bytes(11 * MIB)),
    ]
    target = b"".join(new for _, _, new in parts)
    assert len(target) == 100 * MIB
    groups: list[Group] = []
    sections: list[Section] = []
    payload = b""
    for coding, start, new in parts:
        frame, prefix = b"", tuple[tuple[int, int], ...]()
        if coding.kind is Kind.LITERAL:
            prefix = ((0, PREFIX_BYTES),)
            frame = squeeze(new, base[:PREFIX_BYTES], 1)
        elif coding.kind is Kind.SUBTRACT:
            frame = squeeze(b"".join(coded(base[start : start + len(new)], new, coding)), b"", 1)
        sections.append(Section(len(new), len(groups), start))
        groups.append(Group(coding.kind, len(frame), prefix, coding.width, coding.bits, len(coding.ratios), coding.inner))
        payload += frame
    plan = Plan(Header.of(sha256(base), len(base), sha256(target), len(target)), tuple(groups), tuple(sections))
    files = [tmp_path / name for name in ("base", "delta", "out")]
    files[0].write_bytes(base)
    files[1].write_bytes(encode(plan) + payload)
    done = subprocess.run(
        [sys.executable, "-c", APPLY, *files, sha256(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sha256_file(files[2]) == sha256(target)
    assert int(done.stdout) < PROMISED
