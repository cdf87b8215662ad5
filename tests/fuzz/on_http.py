"""What HTTP brings: requests to the doors whole and in parts, and the answers that edge, trainer and commands get."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import io
import json
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import jwt
import numpy as np
import urllib3
from msgspec.structs import replace
from tests.fuzz.on_mqtt import house
from tests.fuzz.table import MIB, Target, nested
from tests.shared.serving.conftest import Held, Shelf, echo, make_manifest

from toprope_cloud.blobs_api import _may_read
from toprope_cloud.credentials import OperatorProof
from toprope_cloud.job_process import _told
from toprope_cloud.jobs_api import _parsed
from toprope_cloud.tokens import TokenProof
from toprope_edge.cloud_wire import CloudError, Reply, read_answer
from toprope_edge.local_client import to_error
from toprope_shared.commands.client import Client
from toprope_shared.commands.predict import described_by
from toprope_shared.errors import (
    InputError,
    LinkError,
    NotAdmittedError,
    RequestError,
    TooLargeError,
    TopropeError,
    TrustError,
    UnavailableError,
)
from toprope_shared.inference import InferenceResponse, Origin, Provenance
from toprope_shared.manifest import Manifest
from toprope_shared.serving.app import build_app
from toprope_shared.serving.binary import Wanted, decode_request, decode_response, encode_response
from toprope_shared.serving.body import MAX_ENCODINGS, uncompress
from toprope_shared.serving.bulk_forms import OPEN_JSON, PREDICT, OpenBinary
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.forms import read_field
from toprope_shared.serving.gate import Gate
from toprope_shared.serving.quick_json import Row
from toprope_shared.serving.raw import LENGTH_HEADER, from_raw
from toprope_shared.serving.replies import Reply as Local
from toprope_shared.serving.tfexamples import read_examples
from toprope_shared.serving.tfjson import parse, read_predict
from toprope_shared.serving.torchserve import PredictionExchange
from toprope_shared.serving.values import loads
from toprope_shared.tensors import NUMPY_TYPES, TensorSpec
from toprope_training.cloud_api import _sentence
from toprope_training.cloud_trust import parse_targets
from toprope_training.remote import RemoteApi, _fetch

BODY_LIMIT = 200_000
_SECRET = "a secret of at least thirty-two bytes"
HUGE = b"1" + b"0" * 400
X, Y = TensorSpec("x", "FP32", (-1, 3)), TensorSpec("text", "BYTES", (-1,))
JSON_REQUEST = (
    b'{"id":"7","inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2.5,3]}],"parameters":{"timeout":9000000}}'
)
ROWS = b'{"signature_name":"serving_default","instances":[[1,2,3],[4,5,6]]}'
COLUMNS = b'{"inputs":{"x":[[1,2,3]],"text":["a",{"b64":"YQ=="}]}}'
PLAIN = b'{"id":"7","inputs":[{"name":"x","shape":[2,3],"datatype":"FP32","data":[1,2.5,3,-4e-3,0,6]}]}'
BINARY = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":12}}]}'
PLAIN_FORMS = (OPEN_JSON, PREDICT, OpenBinary(len(BINARY)))
CLASSES = JSON_REQUEST[:-1] + b',"outputs":[{"name":"out_x","parameters":{"classification":2}}]}'
EXAMPLES = b'{"context":{"text":"a"},"examples":[{"x":[1,2.5,3]},{"x":[1,0,true],"text":{"b64":"YQ=="}}]}'
FORM_TYPE = b"multipart/form-data; boundary=x"
FORM = b'--x\r\nContent-Disposition: form-data; name="data"; filename="a"\r\n\r\n[[1,2,3]]\r\n--x--\r\n'
EMPTY_AND_WIDE = b'{"inputs":[{"name":"x","shape":[%d,0],"datatype":"FP32","data":[]}]}' % 2**61
PATIENT = b'{"a":NaN,"inputs":[],"parameters":{"timeout":%s}}' % HUGE


def targets() -> list[Target]:
    """Return this file's targets."""
    return [*_doors(), *_parts(), *_answers(), *_cloud(), *_trainer()]


@cache
def _model(*specs: TensorSpec) -> Manifest:
    return make_manifest("m", list(specs), [TensorSpec(f"out_{spec.name}", spec.datatype, spec.shape) for spec in specs])


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def _app() -> Any:
    shelf = Shelf([Held(_model(X), echo), Held(replace(_model(Y), model="words"), echo)])
    return build_app(DataPlane(shelf, body_limit=BODY_LIMIT))


def _ask(data: bytes) -> None:
    """Send a request, its path, headers and body as they stand, through a whole app; no answer is a failure of the server."""
    line, _, rest = data.partition(b"\n")
    head, _, body = rest.partition(b"\n\n")
    pairs = [part.partition(b":")[::2] for part in head.split(b"\n") if part]
    path = line.removeprefix(b"POST ")
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET" if path == line else "POST",
        "path": path.decode("latin-1"),
        "raw_path": path,
        "query_string": b"",
        "headers": [(name.lower(), value.strip()) for name, value in pairs],
    }
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        said.append(message)

    _loop().run_until_complete(_app()(scope, receive, send))
    assert said[0]["status"] in range(200, 500), said


def _doors() -> list[Target]:
    zipped = gzip.compress(JSON_REQUEST)
    seeds = (
        b"POST /v2/models/m/infer\n\n" + JSON_REQUEST,
        b"POST /v2/models/m/versions/1.2.0/infer\nContent-Encoding:gzip\n\n" + zipped,
        b"POST /v1/models/m:predict\nPrefer: return=provenance\n\n" + ROWS,
        b"POST /v1/models/words/versions/7:predict\n\n" + b'{"inputs":["a"]}',
        b"POST /v2/repository/index\n\n" + b'{"ready":true}',
        b"POST /v2/repository/any/models/m/load\n\n" + b'{"parameters":{"config":"{}"}}',
        b"POST /v2/models/m/infer\nAccept-Encoding: deflate;q=0.5, gzip\n\n" + CLASSES,
        b"POST /v1/models/m/labels/stable:classify\n\n" + EXAMPLES,
        b"POST /v1/models/m:regress\n\n" + EXAMPLES,
        b"POST /predictions/m/7\n\n" + b'[{"x":[1,2,3]}]',
        b"POST /predictions/m\nContent-Type: " + FORM_TYPE + b"\n\n" + FORM,
        b"/v2/models/m/config\n\n",
        b"/v2/models/m/versions/7/stats\n\n",
        b"/v1/models/m/metadata\n\n",
        b"/v2/models/m/versions/7/ready\nX-Request-Timeout-Ms: 50\n\n",
    )
    hostile = (
        b"POST /v2/models/m/infer\n\n" + EMPTY_AND_WIDE,
        b"POST /v2/models/m/infer\n\n" + PATIENT,
        b"POST /v2/models/m/infer\ncontent-length: " + b"9" * 5000 + b"\n\n",
        b"POST /v1/models/m:predict\n\n" + b'{"instances":[[%s,1,2]]}' % HUGE,
    )
    return [Target("doors", _ask, (), seeds, hostile, factor=400, fixed=4 * MIB, quick=False)]


def _parts() -> list[Target]:
    refused = (RequestError,)
    raw = struct.pack("<3f", 1, 2, 3)
    bomb = gzip.compress(bytes(8 * MIB))
    onion = zlib.compress(b"{}")
    for _ in range(64):
        onion = zlib.compress(onion, 0)
    columns = replace(_model(X), inputs=(X, Y))
    return [
        Target(
            "serving.json", _json_request, refused, (JSON_REQUEST,), (EMPTY_AND_WIDE,), ("serving.binary.decode_request",)
        ),
        Target(
            "serving.binary",
            _binary_request,
            refused,
            (struct.pack("<H", len(BINARY)) + BINARY + raw,),
            covers=("serving.quick_binary.QuickBinary.read",),
        ),
        Target(
            "serving.plain",
            _plain_request,
            (),
            (b"\0" + JSON_REQUEST, b"\0" + PLAIN, b"\1" + ROWS, b'\1{"instances":[[1,2,3],[4,5,6]]}', b"\2" + BINARY + raw),
            (b'\1{"instances":[[%s,1,2]]}' % HUGE, b"\0" + EMPTY_AND_WIDE),
            ("serving.bulk_forms.BulkForm.read", "serving.bulk_forms.OpenBinary.read"),
            factor=400,
        ),
        Target("serving.raw_request", _raw_request, refused, (b"\0" + raw, b"\1text")),
        Target(
            "serving.raw",
            _raw,
            refused,
            (b"\x0a\x01\x03" + raw, b"\x0c\x01\x01\4\0\0\0abcd"),
            covers=("serving.raw.from_raw",),
        ),
        Target(
            "serving.rows",
            lambda data: read_predict(data, _model(X)),
            refused,
            (ROWS,),
            (b'{"instances":[[%s,1,2]]}' % HUGE,),
            ("serving.tfjson.read_predict", "serving.tfjson.parse"),
            factor=400,
        ),
        Target("serving.columns", lambda data: read_predict(data, columns), refused, (COLUMNS,), factor=400),
        Target(
            "serving.examples",
            lambda data: read_examples(data, columns),
            refused,
            (EXAMPLES,),
            (b'{"examples":[{"x":[%s,1,2],"text":"a"}]}' % HUGE, b'{"examples":[%s{}]}' % (b"{}," * 30_000)),
            ("serving.tfexamples.read_examples",),
            factor=400,
        ),
        Target(
            "serving.prediction",
            _prediction,
            refused,
            (b"\0[[1,2,3]]", b'\0{"data":{"x":[1,2,3],"text":{"b64":"YQ=="}}}', b"\1" + FORM, b"\2data=%5B1%2C2%5D"),
            factor=400,
        ),
        Target(
            "serving.form",
            lambda data: read_field(data, FORM_TYPE.decode(), ("data", "body")),
            refused,
            (FORM,),
            (b"\r\n--x" * 20_000, FORM + b"--x" * 20_000),
            ("serving.forms.read_field",),
        ),
        Target("serving.object", parse, refused, (ROWS + b" and more",), factor=100),
        Target(
            "serving.document",
            loads,
            refused,
            (JSON_REQUEST, b"[NaN,Infinity]"),
            covers=("serving.values.loads",),
            factor=100,
        ),
        Target(
            "serving.body",
            _uncompress,
            (RequestError, TooLargeError),
            (b"\1" + zlib.compress(b"a" * 99), b"\0" + gzip.compress(b"{}")),
            (b"\0" + bomb, b"\2" + onion),
            ("serving.body.uncompress",),
        ),
    ]


def _prediction(data: bytes) -> object:
    kind = ("", FORM_TYPE.decode(), "application/x-www-form-urlencoded")[data[0] % 3 if data else 0]
    return PredictionExchange(None, {"content-type": kind}, data[1:]).read(replace(_model(X), inputs=(X, Y)))


def _json_request(data: bytes) -> object:
    return decode_request(data, {}, model="m", version=None, specs=(X,))


def _plain_request(data: bytes) -> None:
    """Read a request for a batch; what is taken has the numbers that any reader of JSON finds there."""
    form, body = PLAIN_FORMS[data[0] % 3 if data else 0], data[1:]
    if isinstance(form, OpenBinary):  # takes heads only that came before
        with contextlib.suppress(RequestError):
            decode_request(body, {LENGTH_HEADER.lower(): str(len(BINARY))}, model="m", version=None, specs=(X,))
    found = form.read(body, Row.of(X, X))
    if found is None:
        return
    if isinstance(form, OpenBinary):
        assert found[:2] == (body[len(BINARY) :], (len(body) - len(BINARY)) // 12)
        return
    said = json.loads(body)
    rows = said["inputs"][0]["data"] if "datatype" in str(said) else said.get("instances") or said["inputs"]
    assert found[:2] == (np.array(rows, np.float32).tobytes(), np.size(rows) // 3)


def _binary_request(data: bytes) -> object:
    headers = {LENGTH_HEADER.lower(): str(int.from_bytes(data[:2], "little"))}
    return decode_request(data[2:], headers, model="m", version=None, specs=(X,))


def _raw_request(data: bytes) -> object:
    spec = (X, Y)[data[0] % 2] if data else X
    return decode_request(data[1:], {LENGTH_HEADER.lower(): "0"}, model="m", version=None, specs=(spec,))


def _raw(data: bytes) -> object:
    kind, rank, *sizes = data[:4].ljust(4, b"\1")
    shape = tuple(sizes[: rank % 3])
    return from_raw("x", list(NUMPY_TYPES)[kind % len(NUMPY_TYPES)], shape, memoryview(data)[2 + len(shape) :])


def _uncompress(data: bytes) -> bytes:
    encodings = ("gzip", "deflate", ", ".join(["deflate"] * 65), "gzip, identity, deflate", "br")
    named = encodings[data[0] % len(encodings)] if data else "gzip"
    body = uncompress(data[1:], {"content-encoding": named}, BODY_LIMIT)
    assert len(body) <= BODY_LIMIT
    assert named.count(",") < MAX_ENCODINGS
    return body


def _answers() -> list[Target]:
    response = InferenceResponse("m", "1.0.0", 1, {"y": np.ones((2, 3), np.float32)}, Provenance(Origin.CLOUD, edge_ms=0.5))
    said, _ = encode_response(response, Wanted())
    late = b'{"model_name":"m","a":NaN,"outputs":[],"parameters":{"edge_ms":%s}}' % HUGE
    described = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}], "labels": ["a"]}).encode()
    refusal = b'{"error":"no","code":"x","reasons":["offline"]}'
    return [
        Target(
            "answers.response",
            lambda data: decode_response(data, {}),
            (LinkError,),
            (said,),
            (late,),
            ("serving.binary.decode_response",),
        ),
        Target(
            "answers.cloud",
            _cloud_answer,
            (CloudError, RequestError),
            (b"\0" + said, b"\1" + refusal),
            (b'\1{"error":"\xff"}', b"\1" + nested(100_000)),
        ),
        Target("answers.metadata", _described, (LinkError,), (described,), (b"[]", b'{"inputs":5}'), factor=100),
        Target(
            "answers.local",
            lambda data: to_error(Local(503 if data[:1] == b"\0" else 400, data[1:])),
            (),
            (b"\0" + refusal, b"\1" + refusal),
            (b'\1{"error":5}', b"\1" + nested(100_000)),
        ),
        Target("answers.refusal", _refusal, (), (refusal,), (b'{"error":"x","reasons":5}', nested(100_000)), factor=100),
    ]


def _cloud_answer(data: bytes) -> object:
    status = (200, 400, 404, 413, 429, 500, 503, 504)[data[0] % 8] if data else 200
    return read_answer(Reply(status, {"Retry-After": data[1:9].decode("latin-1")}, data[1:]))


class _Heard(Client):
    """A client to whom every server answers this."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__("http://fuzz", 1)
        self._pool = _Answering(status, body)  # type: ignore[assignment]


class _Answering:
    def __init__(self, status: int, body: bytes) -> None:
        self._answer = urllib3.HTTPResponse(io.BytesIO(body), status=status)

    def request(self, *_: object, **__: object) -> urllib3.HTTPResponse:
        return self._answer


def _described(data: bytes) -> object:
    return described_by(_Heard(200, data).get("/v2/models/m"))


def _refusal(data: bytes) -> None:
    """Read why a server can't answer; that it says so is no error of this parser."""
    with contextlib.suppress(UnavailableError):
        _Heard(503, data).get("/v2/models/m")


def _cloud() -> list[Target]:
    good = b"Basic " + base64.b64encode(b"d1:secret")
    job = b'{"recipe":"linear","version":"1.0.0","seed":3}'
    refused = (InputError, RequestError, TooLargeError)
    told = b'{"text":"Training","done":1,"total":2}'
    return [
        Target("cloud.job", lambda data: _parsed(data).check(uploads=True), refused, (job,), (b'{"x":' + nested(100_000),)),
        Target("cloud.credentials", _credentials, (), (good, b"Bearer operator"), ("Basic \xe9".encode("latin-1"),)),
        Target(
            "cloud.gate",
            lambda data: _gate().admit({"authorization": data.decode("latin-1")}),
            (NotAdmittedError,),
            (good, b"Bearer operator", b"Bearer " + _token()),
            (b"Bearer " + base64.urlsafe_b64encode(b'{"alg":' + nested(50_000)).rstrip(b"=") + b".e30.e30",),
        ),
        Target("cloud.trainer_said", _told, (), (told,), (b'{"x":' + nested(100_000),)),
    ]


def _token() -> bytes:
    return jwt.encode({"sub": "a", "aud": "cloud", "exp": 4_000_000_000, "models": ["m"]}, _SECRET, "HS256").encode()


@cache
def _gate() -> Gate:
    """Return a gate that knows the operator and tokens."""
    file = house().path / "jwt"
    file.write_text(_SECRET)
    proof = TokenProof(file, "HS256", "cloud")
    return Gate([OperatorProof("operator"), proof])


def _credentials(data: bytes) -> bool:
    return _may_read(data.decode("latin-1"), "operator", lambda name, password: (name, password) == ("d1", "secret"))


class _Cloud(RemoteApi):
    """A cloud whose every answer has this body."""

    def __init__(self, body: bytes, length: str = "7") -> None:
        super().__init__("http://fuzz", "token", 1)
        self._body = body
        self._length = length

    def ask(self, method: str, path: str, expected: Iterable[int], **more: Any) -> urllib3.BaseHTTPResponse:
        headers = {"Content-Length": self._length}
        return urllib3.HTTPResponse(
            io.BytesIO(self._body), headers, 200, preload_content=False, enforce_content_length=False
        )


def _trainer() -> list[Target]:
    state = b'{"id":"j1","state":"running","progress":{"text":"Training","done":1,"total":3}}'
    events = b": keep-alive\n\nevent: progress\ndata: " + state + b"\n\nevent: end\ndata: " + state + b"\n\n"
    endless = b"data: " + b"x" * (3 * MIB)
    refused = (LinkError, InputError, TrustError)
    return [
        Target(
            "trainer.events",
            _events,
            (TopropeError,),
            (events,),
            (b"data:" + nested(100_000), endless),
            factor=100,
            fixed=8 * MIB,
        ),
        Target(
            "trainer.bundle", _bundle, refused, (tarred(), tarred("pax")), tuple(odd_tars()), quick=False, fixed=4 * MIB
        ),
        Target("trainer.length", _length, refused, (b"7", b"abc", b"-1")),
        Target("trainer.sentence", _sentence, (), (b'{"error":"no"}',), (nested(100_000),)),
        Target(
            "trainer.targets",
            partial(parse_targets, role="models"),
            (TrustError,),
            (house().repository.read("models"),),
            factor=400,
        ),
    ]


def _events(data: bytes) -> object:
    return list(_Cloud(data).events("j1"))


def _bundle(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=house().path) as folder:
        _fetch(_Cloud(data, str(len(data))), "j1", Path(folder), lambda *_: None)


def _length(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=house().path) as folder:
        _fetch(_Cloud(tarred(), data.decode("latin-1")), "j1", Path(folder), lambda *_: None)


def tarred(kind: str = "plain", pax: dict[str, str] | None = None) -> bytes:
    """Return a tar of one short file, with extended headers where they are given."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("manifest.json" if kind == "plain" else "n" * 120)
        info.size, info.pax_headers = 7, pax or {}
        tar.addfile(info, io.BytesIO(b"content"))
    return out.getvalue()


def odd_tars() -> Iterator[bytes]:
    """Yield tars whose extended headers lie: numbers that are none, and a header that wants the memory."""
    yield tarred(pax={"GNU.sparse.size": "abc", "GNU.sparse.map": "x"})
    yield tarred(pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1" * 5000})
    yield tarred(pax={"comment": "x" * (6 * MIB)})
    yield tarred(pax={"path": "a\0b"})
    yield tarred(pax={"path": "../../up"})
