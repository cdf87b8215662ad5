"""What comes as a file: golden sets, deltas, model files, settings, keys."""

from __future__ import annotations

import io
import struct
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from tests.fakes.releases import golden_bytes, onnx_bytes
from tests.fakes.tensor_files import Tensors, tflite
from tests.fuzz.on_mqtt import house
from tests.fuzz.table import MIB, Target

from toprope_cloud.keys import URIS, _uris
from toprope_edge.settings import EdgeSettings
from toprope_shared import deltas, saved_model, settings
from toprope_shared.deltas.coding import squeeze
from toprope_shared.deltas.layout import (
    HEADER_BYTES,
    Header,
    Limits,
    Plan,
    encode,
    encode_header,
    read_plan,
    table_of,
    unpack,
)
from toprope_shared.digest import sha256
from toprope_shared.errors import InputError, IntegrityError, LoadError, ProbeError
from toprope_shared.golden import MAX_UNPACKED_BYTES, GoldenSet
from toprope_shared.signing import read_public
from toprope_training.delta_regions import regions

WANTED = 64 * 1024
TABLE_BYTES = 4096
# What `rebuilding` promises, and the two files of this test in memory.
DELTA_BYTES = 32 * MIB


def targets() -> list[Target]:
    """Return this file's targets."""
    return [*_deltas(), *_files(), *_texts(), _saved_model()]


def _saved_model() -> Target:
    with tempfile.TemporaryDirectory(dir=house().path) as name:
        folder = Path(name)
        (folder / "variables").mkdir()
        (folder / saved_model.GRAPH).write_bytes(b"graph")
        (folder / "variables" / "variables.index").write_bytes(b"index")
        packed = saved_model.pack(folder)
    return Target("saved_model.unpack", _unpack, (LoadError,), (packed,), (_far(),), ("saved_model.unpack",), quick=False)


def _unpack(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=house().path) as folder:
        saved_model.unpack(data, Path(folder))


def _far() -> bytes:
    """Return an archive whose file would lie above the folder, under a long name of GNU's."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in (saved_model.GRAPH, "variables/" + "x" * 300, "../out"):
            tar.addfile(tarfile.TarInfo(name))
    return file.getvalue()


@cache
def _pair() -> tuple[bytes, bytes]:
    rng = np.random.default_rng(1)
    weights, scales = rng.integers(-127, 127, (16, 64), np.int8), rng.standard_normal(300).astype(np.float32)
    moved = weights + rng.integers(-1, 2, weights.shape, np.int8)
    old: Tensors = {"a": weights, "b": scales}
    new: Tensors = {"a": moved, "b": scales * np.float32(1.01)}
    return tflite(old), tflite(new)


@cache
def _base() -> Path:
    file = house().path / "base.tflite"
    file.write_bytes(_pair()[0])
    return file


def _deltas() -> list[Target]:
    old, new = _pair()
    delta = deltas.make(old, new, regions(old), regions(new))
    assert len(delta) < len(new)
    refused = (InputError, IntegrityError)
    parts = ("layout.read_header", "layout.read_plan", "planes.decode_ratios")
    return [
        Target(
            "deltas.file",
            _apply,
            refused,
            (delta,),
            covers=tuple(f"deltas.{one}" for one in parts),
            fixed=DELTA_BYTES,
            quick=False,
        ),
        Target("deltas.header", deltas.read_header, refused, (delta[:HEADER_BYTES],)),
        Target("deltas.table", _table, refused, (_unpacked(delta),), (_prefixes(),), factor=0, fixed=DELTA_BYTES),
        Target(
            "deltas.packed",
            _packed,
            refused,
            (squeeze(_unpacked(delta).ljust(TABLE_BYTES, b"\0"), b"", 19),),
            covers=("deltas.layout.unpack",),
            fixed=DELTA_BYTES,
            quick=False,
        ),
        Target("deltas.payload", _payload, refused, (_payload_of(delta),), fixed=DELTA_BYTES, quick=False),
    ]


def _plan(delta: bytes) -> tuple[Plan, int]:
    file = io.BytesIO(delta)
    return read_plan(file, len(delta), Limits()), file.tell()


def _unpacked(delta: bytes) -> bytes:
    """Return the length of a delta's payloads, its counts of groups and sections, and its table unpacked."""
    plan, _ = _plan(delta)
    return struct.pack(">HHH", len(_payload_of(delta)), len(plan.groups), len(plan.sections)) + table_of(plan)


def _prefixes() -> bytes:
    """Return a table of 15 groups, each with as many empty prefixes as one may have."""
    return struct.pack(">HHH", 0, 15, 0) + (b"\1\0\x80\x80\4" + bytes(2 * 65_536)) * 15


def _table(data: bytes) -> object:
    """Read a delta with this table, which stands as it is; the header is right."""
    payload, groups, sections = struct.unpack(">HHH", data[:6].ljust(6, b"\0"))
    table = data[6:]
    old, new = _pair()
    head = Header.of(sha256(old), len(old), sha256(new), len(new))
    whole = encode_header(head, groups, sections, len(table), len(table)) + table + bytes(payload)
    return read_plan(io.BytesIO(whole), len(whole), Limits())


def _packed(data: bytes) -> bytes:
    return unpack(data, TABLE_BYTES)


def _payload_of(delta: bytes) -> bytes:
    return delta[_plan(delta)[1] :]


@cache
def _front() -> bytes:
    old, new = _pair()
    return encode(_plan(deltas.make(old, new, regions(old), regions(new)))[0])


def _payload(data: bytes) -> None:
    """Rebuild with a good table and these payloads."""
    _apply(_front() + data)


def _apply(data: bytes) -> None:
    file, out = house().path / "delta", house().path / "out"
    file.write_bytes(data)
    wanted = sha256(_pair()[1])
    deltas.apply(_base(), file, out, target=wanted, limits=Limits(target_bytes=WANTED))
    assert sha256(out.read_bytes()) == wanted


def _files() -> list[Target]:
    x = np.ones((4, 3), np.float32)
    golden = golden_bytes({"x": x}, {"y": x * 2})
    graph = onnx_bytes(2.0)
    return [
        Target(
            "golden",
            GoldenSet.read,
            (ProbeError,),
            (golden,),
            tuple(_lying_sets()),
            ("golden.GoldenSet.read",),
            fixed=4 * MIB,
        ),
        Target("regions.tflite", regions, (InputError,), (_pair()[0],), factor=400),
        Target("regions.onnx", regions, (InputError,), (graph,), factor=400),
    ]


def _lying_sets() -> list[bytes]:
    """Return golden sets of arrays that claim more than they have, and of those that unpack to more than may be."""
    found = []
    for shape in ("(1073741824,)", "(0,)", "(-1,)"):
        head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        found.append(_zipped({"in.x.npy": b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head}))
    piece = b"\0" * (MAX_UNPACKED_BYTES // 4)
    found.append(_zipped(dict.fromkeys(("in.a.npy", "in.b.npy", "in.c.npy", "in.d.npy", "in.e.npy"), piece)))
    return found


def _zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


def _texts() -> list[Target]:
    toml = b'[edge]\ndevice = "d1"\nport = 8501\nmodels = ["a", "b"]\nprobation_seconds = 1.5\n'
    deep = b"[edge]\ndevice = " + b"[" * 20_000
    private = load_pem_private_key((house().path / "keys" / "root.pem").read_bytes(), None)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    odd = (b"edge = 3", b'edge = "ab"', b"edge = [1]", b"[edge]\nport = " + b"9" * 5000, deep)
    return [
        Target("settings", _settings, (InputError,), (toml,), odd, ("settings.load",), factor=400, quick=False),
        Target(
            "keys.uris",
            _key_uris,
            (InputError,),
            (b'[uris]\n"00" = "awskms:one"\n',),
            (b"uris = 3", deep),
            factor=400,
            quick=False,
        ),
        Target("keys.public", _public, (InputError,), (public,), covers=("signing.read_public",), quick=False),
    ]


def _written(name: str, data: bytes) -> Path:
    file = house().path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    return file


def _settings(data: bytes) -> EdgeSettings:
    return settings.load(EdgeSettings, "edge", {}, file=_written("toprope.toml", data))


def _key_uris(data: bytes) -> dict[str, str]:
    return _uris(_written(f"uris/{URIS}", data).parent)


def _public(data: bytes) -> object:
    return read_public(_written("public.pem", data))
