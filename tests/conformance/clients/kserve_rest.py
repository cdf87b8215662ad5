"""Asks our doors through KServe's own InferenceRESTClient, v1 and v2, in an environment that has kserve and nothing of ours.

`python -m tests.conformance.clients.kserve_rest HOST:PORT`, where the models of `tests/conformance/places.py` are. Every check
is told by name as JSON.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import Any

import httpx  # type: ignore[import-not-found,unused-ignore]
import numpy as np
from kserve import (  # type: ignore[import-not-found,unused-ignore]
    InferenceRESTClient,
    InferInput,
    InferOutput,
    InferRequest,
    RESTConfig,
)
from kserve.protocol.infer_type import RequestedOutput  # type: ignore[import-not-found,unused-ignore]
from tests.conformance.clients.checks import Checks

MODEL, KINDS = "affine", "kinds"
X = np.arange(12, dtype=np.float32).reshape(4, 3)
EXPECTED = 2 * X + 1
DATATYPES = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL", "FP16", "FP32", "FP64")


def request(tensor: Any, *, binary_out: bool | None = None, **more: Any) -> Any:
    """Return a request for the model; `binary_out` None leaves the form of the answer to the server."""
    if binary_out is not None:
        more["request_outputs"] = [RequestedOutput("y", {"binary_data": binary_out})]
    return InferRequest(MODEL, [tensor], **more)


def given(array: Any, *, binary: bool, name: str = "x", datatype: str = "FP32") -> Any:
    """Return an input of a request."""
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def same(answer: Any, expected: Any, name: str = "y") -> None:
    """Hold an output of a v2 answer against what it must be."""
    (output,) = [one for one in answer.outputs if one.name == name]
    assert isinstance(output, InferOutput)
    got = output.as_numpy()
    assert got.dtype == expected.dtype, f"{got.dtype}, not {expected.dtype}"
    np.testing.assert_array_equal(got, expected)


async def refused(work: Awaitable[Any], status: int, *words: str) -> None:
    """Require an HTTP error with this status, and these words in what the client makes of the body."""
    try:
        await work
    except httpx.HTTPStatusError as error:
        text, got = str(error), error.response.status_code
    else:
        raise AssertionError("it was not refused")
    assert got == status, text
    assert all(word in text.partition(f"'{status}")[0] for word in words), text


async def v1(checks: Checks, base: str) -> None:
    """KServe's v1, which is TensorFlow Serving's predict."""
    async with InferenceRESTClient(RESTConfig(protocol="v1", timeout=30)) as client:
        with checks.check("v1: live and a model is ready"):
            assert await client.is_server_live(base)
            assert await client.is_model_ready(base, MODEL)
        with checks.check("v1: an unknown model is 404"):
            await refused(client.is_model_ready(base, "nothing"), 404, "nothing")
        with checks.check("v1: instances"):
            answer = await client.infer(base, {"instances": X.tolist()}, model_name=MODEL)
            assert answer["predictions"] == EXPECTED.tolist()
        with checks.check("v1: inputs"):
            answer = await client.infer(base, {"inputs": X.tolist()}, model_name=MODEL)
            assert answer["outputs"] == EXPECTED.tolist()
        with checks.check("v1: mistakes have a status and a sentence"):
            await refused(client.infer(base, {"instances": [[1, 2]]}, model_name=MODEL), 400, "shape")
            await refused(client.infer(base, {"instances": X.tolist()}, model_name="nothing"), 404, "nothing")
            await refused(client.infer(base, {}, model_name=MODEL), 400, "instances")
        with checks.check("v1: explain, which we do not have, is 501"):
            await refused(client.explain(base, MODEL, {"instances": X.tolist()}), 501, "explain")


async def v2(checks: Checks, base: str) -> None:
    """The Open Inference Protocol as KServe speaks it."""
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=30)) as client:
        with checks.check("v2: live, ready, a model is ready, an unknown one is not"):
            assert await client.is_server_live(base) is True
            assert await client.is_server_ready(base) is True
            assert await client.is_model_ready(base, MODEL)
            assert not await client.is_model_ready(base, "nothing")
        for binary in (True, False):
            for back in (True, False, None):
                form = {True: "binary", False: "JSON", None: "what we like"}
                with checks.check(f"v2: {form[binary]} in, {form[back]} out"):
                    asked = request(given(X, binary=binary), binary_out=back)
                    same(await client.infer(base, asked, model_name=MODEL), EXPECTED)
        with checks.check("v2: a plain dict"):
            tensor = {"name": "x", "shape": [4, 3], "datatype": "FP32", "data": X.ravel().tolist()}
            same(await client.infer(base, {"inputs": [tensor]}, model_name=MODEL), EXPECTED)
        with checks.check("v2: id, parameters and headers"):
            asked = request(given(X, binary=True), request_id="call 1", parameters={"mine": "yes"})
            headers: dict[str, str] = {}
            answer = await client.infer(
                base, asked, model_name=MODEL, headers={"X-Request-Id": "r-1"}, response_headers=headers
            )
            assert (answer.id, answer.model_name, headers["x-request-id"]) == ("call 1", MODEL, "r-1")
        with checks.check("v2: mistakes have a status and a sentence"):
            await refused(client.infer(base, request(given(X[:, :2], binary=True)), model_name=MODEL), 400, "shape")
            await refused(client.infer(base, request(given(X, binary=False)), model_name="nothing"), 404, "nothing")
            await refused(client.infer(base, {"inputs": []}, model_name=MODEL), 400, "missing")
        with checks.check("v2: every datatype"):
            arrays = {name: np.array([0, 1, 1], np.bool_) if name == "BOOL" else number(name) for name in DATATYPES}
            inputs = [given(array, binary=True, name=name, datatype=name) for name, array in arrays.items()]
            inputs.append(given(np.zeros(3, np.uint16), binary=True, name="BF16", datatype="UINT16"))
            inputs[-1]._datatype = "BF16"  # which it has no arrays for
            outputs = [RequestedOutput(f"out_{name}", {"binary_data": True}) for name in arrays]
            answer = await client.infer(base, InferRequest(KINDS, inputs, request_outputs=outputs), model_name=KINDS)
            for name, array in arrays.items():
                same(answer, array, f"out_{name}")
        with checks.check("v2: 32 calls at once answer each its own"):
            calls = [
                client.infer(base, request(given(X + one, binary=one % 2 == 0)), model_name=MODEL) for one in range(32)
            ]
            for one, answer in enumerate(await asyncio.gather(*calls)):
                same(answer, 2 * (X + one) + 1)


def number(datatype: str) -> Any:
    """Return three numbers of a datatype, at its borders where it is an integer."""
    kind = np.dtype({"FP": "float"}.get(datatype[:2], "") + datatype[2:] if datatype[:2] == "FP" else datatype.lower())
    return np.array([np.iinfo(kind).min, 1, np.iinfo(kind).max] if kind.kind in "iu" else [-1.5, 0.1, 6e4], kind)


async def main(place: str) -> None:
    """Run every check."""
    checks = Checks()
    await v1(checks, f"http://{place}")
    await v2(checks, f"http://{place}")
    checks.tell()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
