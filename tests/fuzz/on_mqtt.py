"""What MQTT brings: messages, chunks, topics, manifests, and trust metadata as it comes and as it is judged."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from paho.mqtt.client import MQTTMessage
from tests.fakes.releases import tiny_release
from tests.fuzz.table import MIB, Target, nested
from tuf.api.metadata import TargetFile
from tuf.api.serialization import SerializationError

from toprope_cloud import ceremony, rotation
from toprope_cloud.keys import Keyring
from toprope_cloud.metadata import MetadataRepository
from toprope_edge import cbor
from toprope_edge.mapping import Form, read_payload
from toprope_edge.settings import Enrolment
from toprope_shared import drafts, manifest
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import MAX_BITMAP_BYTES, Announce, ChunkManifest, Data, Need, Phase, from_bitmap
from toprope_shared.clock import SystemClock
from toprope_shared.counts import MAX_COUNT
from toprope_shared.draft_words import describe
from toprope_shared.errors import InputError, LinkError, RequestError, TrustError
from toprope_shared.generations import SEAL, Generations
from toprope_shared.link import Address, Link
from toprope_shared.messages import (
    Ack,
    DesiredRelease,
    DeviceState,
    Fetching,
    Head,
    Report,
    Rollout,
    RunningModel,
    decode,
    encode,
)
from toprope_shared.revocation import floors, may_follow, revoked_because
from toprope_shared.tensors import TensorSpec
from toprope_shared.topics import Topics
from toprope_shared.trust import MODELS, TrustClient
from toprope_shared.verifying import counter_of

DIGEST = "5a" * 32
ROLES = ("root", "timestamp", "snapshot", "targets", MODELS)
ONLINE = ("timestamp", "snapshot", "targets", MODELS)
MESSAGES: tuple[Any, ...] = (
    Rollout(1, "stable", 3, (DesiredRelease("double", "1.0.0", 1, DIGEST, 900),), 1_900_000_000),
    Head(2, 3, 4),
    DeviceState(
        "d1",
        True,
        7,
        "stable",
        ("onnxruntime/1.20",),
        (RunningModel("double", "1.0.0", "onnx-float32", DIGEST, "onnxruntime"),),
        fetching=Fetching(DIGEST, 1, 2, 3.5, 4.5, "pull"),
    ),
    Report(1, 5, "double", "1.0.0", "FETCHING", details={"a": [1, None, "b"]}),
    Ack(7),
    Enrolment("d1", "d1", "secret", "d1"),
)


@dataclass(frozen=True)
class House:
    """A small installation: keys, first metadata of all roles, one signed release."""

    folder: tempfile.TemporaryDirectory[str]
    repository: MetadataRepository
    keyring: Keyring
    manifest: manifest.Manifest

    @property
    def path(self) -> Path:
        """A folder for whatever a parser must find on disk."""
        return Path(self.folder.name)

    @property
    def trust(self) -> Path:
        """The folder of the metadata."""
        return self.path / "trust"


@cache
def house() -> House:
    """Make the installation, once a process; it goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="toprope-fuzz-")
    base = Path(folder.name)
    ceremony.init(base / "keys", base / "trust")
    keyring = Keyring(base / "keys")
    repository = MetadataRepository(base / "trust", keyring, clock=SystemClock())
    made = tiny_release(Blobs(base / "blobs"))
    repository.put_target(MODELS, made.path, manifest.encode(made), {"release_counter": made.release_counter})
    return House(folder, repository, keyring, made)


def targets() -> list[Target]:
    """Return this file's targets."""
    return [*_messages(), *_transfer(), *_trust(), *_bindings()]


def _bindings() -> list[Target]:
    """Return what a binding reads: CBOR as such, and payloads in every form for a model of two inputs, and of one."""
    refused = (RequestError,)
    x, text = TensorSpec("x", "FP32", (-1, 3)), TensorSpec("text", "BYTES", (-1,))
    both = {"d": [{"x": [1.5, 2, 3]}], "text": "a"}
    shown = (bytes.fromhex("9f018202039f0405ffff"), bytes.fromhex("bf61610161629f0203ffff"), cbor.dumps(both))
    lying = (b"\x9b" + b"\xff" * 8, b"\xbb" + b"\xff" * 8, b"\x5b" + b"\xff" * 8, b"\x7b" + b"\x7f" * 8)
    wide = (b"\x99\x40\x00" + b"\xa0" * 0x4000, b"\x9f" * 5000, b"\x81" * 5000, b"\xd9\xd9\xf7" * 5000)

    def read(data: bytes, form: Form, *specs: TensorSpec) -> object:
        return read_payload(data, form, specs, {"x": "d.0.x"} if len(specs) > 1 else {}, max_bytes=MIB)

    return [
        # An empty map costs 64 bytes and a place in its list.
        Target("cbor", cbor.loads, refused, shown, (*lying, *wide), factor=200),
        Target(
            "bindings.json", lambda data: read(data, Form.JSON, x, text), refused, (json.dumps(both).encode(),), factor=200
        ),
        Target("bindings.cbor", lambda data: read(data, Form.CBOR, x, text), refused, shown[2:], lying, factor=200),
        Target("bindings.list", lambda data: read(data, Form.JSON, x), refused, (b"[1,2,3]", b"[[1,2,NaN]]"), factor=200),
        Target("bindings.raw", lambda data: read(data, Form.RAW, x), refused, (bytes(12), bytes(24))),
        Target("bindings.text", lambda data: read(data, Form.RAW, text), refused, (b"a",)),
    ]


def _messages() -> list[Target]:
    deep = b'{"x":' + nested(100_000)
    wide = b'{"number":9223372036854775808,"at":1,"model":"m","version":"1","state":"x"}'
    found = [
        Target(
            f"messages.{type(value).__name__}",
            partial(decode, type(value)),
            (InputError,),
            (encode(value),),
            (deep, wide),
            ("messages.decode",),
        )
        for value in MESSAGES
    ]
    shape = Target(
        "manifest",
        manifest.parse,
        (InputError,),
        (manifest.encode(house().manifest),),
        (deep, manifest.encode(house().manifest).replace(b'"1.0.0"', '"1\u0663.0.0"'.encode())),
        ("manifest.parse",),
    )
    return [*found, shape]


def _transfer() -> list[Target]:
    table = ChunkManifest(1024, 5000, bytes(32), bytes(5 * 16)).encode()
    need = Need(1, bytes(32), 1024, (3, 4, 9), nonce=5, listens=True)
    whole = Need(1, bytes(32), 1024, tuple(range(100)), whole=True)
    widest = Need(1, bytes(32), 1024, (0, 8 * MAX_BITMAP_BYTES - 1), whole=True).encode()
    filled = widest[:-MAX_BITMAP_BYTES] + b"\xff" * MAX_BITMAP_BYTES
    announce = Announce(Phase.PASS, 1, bytes(32), 1024, 5, 1, 100, 1_000_000).encode()
    refused = (InputError,)
    return [
        Target("chunks.manifest", ChunkManifest.parse, refused, (table,), covers=("chunks.ChunkManifest.parse",)),
        Target(
            "chunks.data",
            Data.parse,
            refused,
            (Data(1, b"12345678", 2, b"x" * 40).encode(),),
            covers=("chunks.Data.parse",),
        ),
        Target("chunks.data_whole", _data_with_checksum, refused, (b"x" * 60,)),
        Target(
            "chunks.need",
            Need.parse,
            refused,
            (need.encode(), whole.encode()),
            (widest, filled),
            ("chunks.Need.parse",),
            factor=400,
        ),
        Target("chunks.announce", Announce.parse, refused, (announce,), covers=("chunks.Announce.parse",)),
        Target(
            "chunks.bitmap",
            lambda data: list(from_bitmap(data[:MAX_BITMAP_BYTES])),
            (),
            (b"\x01\xff",),
            covers=("chunks.from_bitmap",),
            factor=400,
        ),
        Target(
            "topics.device",
            _device,
            refused,
            (b"toprope/v1/need/3/d1", b"toprope/v1/d/d1/state"),
            (b"toprope/v1/d//state",),
        ),
        Target("link.message", _hear, (), (b"toprope/v1/d/d1/state",), (b"toprope/v1/d/\xff/state",)),
        Target("link.address", _address, refused, (b"mqtts://broker.example:8883",), (b"mqtt://h:99999", b"mqtt://[")),
    ]


def _data_with_checksum(data: bytes) -> Data:
    """Read a DATA message whose checksum holds, so that what lies behind it is reached."""
    made = Data(int.from_bytes(data[:8]), data[8:16].ljust(8, b"\0"), int.from_bytes(data[16:20]), data[20:])
    read = Data.parse(made.encode())
    assert read == made
    return read


def _device(data: bytes) -> str:
    return Topics().device_of(data.decode(errors="replace"))


@cache
def _link() -> Link:
    return Link((Address("127.0.0.1", 1),), client_id="fuzz")


def _hear(data: bytes) -> None:
    _link()._on_message(None, None, MQTTMessage(topic=data))  # type: ignore[arg-type]  # the client is not looked at


def _address(data: bytes) -> Address:
    return Address.parse(data.decode(errors="replace"))


def _trust() -> list[Target]:
    kept = house().repository
    found = [
        Target(
            f"trust.metadata.{role}",
            partial(drafts.parse, role=role),
            (InputError,),
            (kept.read(role),),
            (b'{"signed":' + nested(100_000),),
            ("drafts.parse",),
            factor=400,
        )
        for role in ROLES
    ]
    renewed = rotation.renew(kept, house().keyring, MODELS, clock=SystemClock())[0]
    draft = json.dumps(
        {
            "schema": 1,
            "words": [],
            "roots": renewed.roots,
            "targets": renewed.targets,
            "documents": [{"role": one.role, "metadata": one.metadata, "before": one.before} for one in renewed.documents],
        }
    ).encode()
    surrogate = draft.replace(b'\\"signatures', b'\\"odd\\": \\"\\\\ud800\\", \\"signatures', 1)
    roads = tuple(bytes([number]) + kept.read(role) for number, role in enumerate(ROLES))
    said = tuple(bytes([number]) + kept.read(role) for number, role in enumerate(ONLINE))
    ahead = json.loads(kept.read(ONLINE[0]))
    ahead["signed"]["version"] = 10**30
    forward = b"\0" + json.dumps(ahead).encode()
    custom = tuple(
        json.dumps(one).encode() for one in ({"release_counter": 1}, {"revoked": "why", "min_release_counter": 2})
    )
    return [
        *found,
        Target(
            "trust.draft",
            _draft,
            (InputError, TrustError),
            (draft,),
            (surrogate,),
            factor=400,
            fixed=4 * MIB,
            quick=False,
            covers=("drafts.Draft.read",),
        ),
        Target("trust.refresh", _refresh, (), roads, factor=400, fixed=8 * MIB, quick=False),
        Target("trust.signed", _signed_by_thieves, (InputError,), said, (forward,), factor=400, fixed=8 * MIB, quick=False),
        Target("trust.custom", _custom, (TrustError,), custom, (b"[1]", b'"x"', b'{"release_counter":true}')),
        Target(
            "trust.models",
            kept.check_models,
            (InputError, TrustError),
            (renewed.documents[0].metadata.encode(),),
            factor=400,
            quick=False,
        ),
        Target("trust.seal", _seal, (), (b'{"1.root.json": "00"}',), (nested(100_000),), quick=False, factor=100),
    ]


def _draft(data: bytes) -> tuple[str, ...]:
    file = house().path / "draft.json"
    file.write_bytes(data)
    draft = drafts.Draft.read(file)
    drafts.missing(draft)
    return describe(draft, set(), SystemClock())


class _Lying:
    """A road that brings the true metadata, but for one role."""

    def __init__(self, role: str, data: bytes) -> None:
        self._role = role
        self._data = data

    def get(self, role: str, version: int | None) -> bytes:
        if role == self._role:
            if role == "root" and version not in (None, 2):
                raise FileNotFoundError(role)
            return self._data
        if role == "root":
            raise FileNotFoundError(role)
        try:
            return house().repository.read(role, version)
        except OSError as error:
            raise LinkError(str(error)) from error


def _refresh(data: bytes) -> None:
    """Refresh a new device's metadata over a road on which one role's file is these bytes; it ends in a verdict."""
    road = _Lying(ROLES[data[0] % len(ROLES)] if data else "root", data[1:])
    with tempfile.TemporaryDirectory(dir=house().path) as folder:
        client = TrustClient(Path(folder), house().repository.read("root", 1), road, "stable")
        refreshed = client.refresh()
        assert all(floor.value <= MAX_COUNT for floor in refreshed.floors.values())


def _signed_by_thieves(data: bytes) -> None:
    """Refresh over a road on which one role's file says this and is signed as it must be: who stole a key may say anything."""
    role = ONLINE[data[0] % len(ONLINE)] if data else ONLINE[0]
    md = drafts.parse(data[1:], role)
    key = next(iter(drafts.keys_of(_delegator(role), role).values()))
    signer = house().keyring.signer(role, key)
    assert signer is not None
    try:
        md.sign(signer)
    except SerializationError:  # nobody can sign what has no canonical form
        return
    _refresh(bytes([ROLES.index(role)]) + md.to_bytes())


def _delegator(role: str) -> drafts.Delegator:
    repository = house().repository
    return repository.root() if role in drafts.TOP else repository.targets()


def _custom(data: bytes) -> None:
    """Judge a signed release whose custom fields are these; who stole a key may sign anything."""
    try:
        custom = json.loads(data)
    except (ValueError, RecursionError):
        return
    target = _release(custom)
    may_follow(_release({"release_counter": 1}), target)
    revoked_because(target, floors([target]))
    counter_of(target)


def _release(custom: Any) -> TargetFile:
    return TargetFile(1, {"sha256": DIGEST}, house().manifest.path, {"custom": custom})


def _seal(data: bytes) -> None:
    folder = house().path / "generations" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SEAL).write_bytes(data)
    Generations(folder.parent).newest()
