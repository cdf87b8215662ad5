"""The quick reader of JSON beside the thorough one: whatever it takes, both read the same; what is broken it leaves alone."""

from __future__ import annotations

import random

import pytest

from toprope_shared.errors import RequestError
from toprope_shared.inference import InferenceRequest
from toprope_shared.serving.binary import Wanted, decode_request
from toprope_shared.serving.quick_json import quick_infer
from toprope_shared.serving.raw import LENGTH_HEADER

BODIES = (
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2.5,-3e2]}]}',
    b'{"id":"a","inputs":[{"name":"x","shape":[2,2],"datatype":"FP64","data":[1,2.5,-3e2,0.1]}]}',
    b'{"inputs":[{"name":"x","shape":[],"datatype":"FP64","data":[1]},{"name":"y","shape":[1],"datatype":"FP32","data":[7]}]}',
    b'{"inputs":[{"name":"x","shape":[3],"datatype":"FP32","data":[16777217,1e38,-0.0]}],"extra":{"a":[1,{"b":null}]}}',
)
PIECES = (
    *(bytes([code]) for code in b'01.e-+"[]{},: \\\n\0\xff'),
    *(b"null", b"true", b"NaN", b"1e39", b"1e400", b"9" * 25, b'"\\ud800"', b"3.0", b"/*c*/", b"\xef\xbb\xbf", b"\xc3\xa9"),
    *(b'"id":"z",', b'"data":[1],', b'"shape":[1.0,3],', b'"parameters":null,', b'"parameters":{},', b'"outputs":[],'),
)
SEED, TRIES = 6, 6000


def spoilt(rng: random.Random) -> bytes:
    """Return a body with up to three pieces put in or taken out."""
    body = bytearray(rng.choice(BODIES))
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(len(body) + 1)
        if rng.random() < 0.5:
            del body[at : at + rng.randint(1, 4)]
        else:
            body[at:at] = rng.choice(PIECES)
    return bytes(body)


def thorough(body: bytes) -> tuple[InferenceRequest, Wanted]:
    """Read a body as one whose header says that all of it is JSON, which only the thorough reader looks at."""
    return decode_request(body, {LENGTH_HEADER.lower(): str(len(body))}, model="m", version=None, specs=())


def test_whatever_the_quick_reader_takes_the_thorough_one_reads_the_same() -> None:
    rng = random.Random(SEED)
    taken = 0
    for _ in range(TRIES):
        body = spoilt(rng)
        quick = quick_infer(body)
        if quick is None:
            continue
        taken += 1
        try:
            request, wanted = thorough(body)
        except RequestError as error:
            pytest.fail(f"only the quick reader takes {body!r}: {error}")
        arrays, identity = quick
        assert (request.id, list(request.inputs), request.outputs, wanted.binary) == (identity, list(arrays), (), False), (
            body
        )
        for name, array in arrays.items():
            other = request.inputs[name]
            assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes()), body
    assert taken > TRIES / 20
