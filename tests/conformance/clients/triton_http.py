"""Asks our doors whatever tritonclient[http] can ask, in an environment that has tritonclient and nothing of ours.

`python -m tests.conformance.clients.triton_http HOST:PORT`, where the models of `tests/conformance/places.py` are. Every check
is told by name as JSON. Where our answer is meant to be a refusal, the client must be able to read it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.http as triton  # type: ignore[import-not-found]
import tritonclient.http.aio as aio  # type: ignore[import-not-found]
import urllib3  # type: ignore[import-not-found,unused-ignore]
from tests.conformance.clients.checks import Checks
from tritonclient.utils import InferenceServerException, np_to_triton_dtype  # type: ignore[import-not-found]

MODEL, VERSION, COUNTER, KINDS, TEXTS = "affine", "1.2.0", "7", "kinds", "strings"
OLDER = ("1.1.0", "6")  # y = 3 x + 1
X = np.arange(12, dtype=np.float32).reshape(4, 3)
EXPECTED = 2 * X + 1
ROWS = 3
# As the protocol names them, with values at the borders.
BORDERS: dict[str, Any] = {
    "BOOL": np.array([True, False, True]),
    **{
        f"{sign}INT{bits}": np.array([np.iinfo(kind).min, 1, np.iinfo(kind).max], kind)
        for sign in ("", "U")
        for bits in (8, 16, 32, 64)
        for kind in (np.dtype(f"{sign.lower()}int{bits}"),)
    },
    "BF16": np.array([-3.3895314e38, 0.1, 1e-40], ml_dtypes.bfloat16),
    "FP16": np.array([-65504, 0.1, 6e-8], np.float16),
    "FP32": np.array([np.finfo(np.float32).min, 0.1, 1e-45], np.float32),
    "FP64": np.array([np.finfo(np.float64).max, 0.1, 5e-324], np.float64),
}

HALVES = ("BF16", "FP16")  # without a JSON form: binary in a request whose others are JSON


def given(name: str, array: Any, *, binary: bool = True) -> Any:
    """Return an input of a request."""
    tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def wanted(name: str, **how: Any) -> Any:
    """Return an output of a request."""
    return triton.InferRequestedOutput(name, **how)


def same(answer: Any, expected: Any = EXPECTED, name: str = "y") -> None:
    """Hold an output against what it must be."""
    got = answer.as_numpy(name)
    assert got is not None, f"there is no output {name}"
    assert got.dtype == expected.dtype, f"{got.dtype}, not {expected.dtype}"
    np.testing.assert_array_equal(got, expected)


def refused(work: Any, *words: str) -> None:
    """Require an error that the client could read, with these words in it."""
    try:
        work()
    except InferenceServerException as error:
        text, status = error.message(), str(error.status() or "")
    else:
        raise AssertionError("it was not refused")
    assert "occurred in the client" not in text, text
    assert all(word in text for word in words), text
    assert status.isdigit(), f"no status with: {text}"


def about(checks: Checks, client: Any) -> None:
    """Health, metadata, configuration, index."""
    with checks.check("live and ready"):
        assert client.is_server_live()
        assert client.is_server_ready()
    with checks.check("a model is ready, by name, by counter and by version"):
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, COUNTER)
        assert client.is_model_ready(MODEL, VERSION)
    with checks.check("an unknown model and version are not ready"):
        assert not client.is_model_ready("nothing")
        assert not client.is_model_ready(MODEL, "99")
    with checks.check("server metadata names what is spoken"):
        said = client.get_server_metadata()
        assert said["name"]
        assert said["version"]
        assert {"binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"} <= set(
            said["extensions"]
        ), said
    with checks.check("model metadata describes the tensors"):
        said = client.get_model_metadata(MODEL)
        assert said["name"] == MODEL
        assert VERSION in said["versions"] or COUNTER in said["versions"], said
        assert [(one["name"], one["datatype"], one["shape"]) for one in said["inputs"]] == [("x", "FP32", [-1, 3])]
        assert [one["name"] for one in said["outputs"]] == ["y"]
        assert said["platform"]
        assert client.get_model_metadata(MODEL, COUNTER)["inputs"] == said["inputs"]
    with checks.check("model configuration"):
        said = client.get_model_config(MODEL)
        assert said["name"] == MODEL
        assert [(one["name"], one["data_type"]) for one in said["input"]] == [("x", "TYPE_FP32")], said
        assert [one["name"] for one in said["output"]] == ["y"]
        assert isinstance(said["max_batch_size"], int)
        assert client.get_model_config(MODEL, COUNTER)["name"] == MODEL
    with checks.check("repository index"):
        found = {(one["name"], one["version"]): one["state"] for one in client.get_model_repository_index()}
        assert [state for (name, version), state in found.items() if name == MODEL and version not in OLDER] == ["READY"], (
            found
        )
    for what, work in {
        "metadata": lambda: client.get_model_metadata("nothing"),
        "configuration": lambda: client.get_model_config("nothing"),
        "statistics": lambda: client.get_inference_statistics("nothing"),
    }.items():
        with checks.check(f"{what} of an unknown model is an error that can be read"):
            refused(work, "nothing")


def infer(checks: Checks, client: Any) -> None:
    """Inference in every form that the client has."""
    for binary in (True, False):
        form = "binary" if binary else "JSON"
        for back in (True, False):
            with checks.check(f"{form} in, {'binary' if back else 'JSON'} out"):
                same(client.infer(MODEL, [given("x", X, binary=binary)], outputs=[wanted("y", binary_data=back)]))
        with checks.check(f"{form} in, no outputs named"):
            same(client.infer(MODEL, [given("x", X, binary=binary)]))
    for algorithm in ("gzip", "deflate"):
        for binary in (True, False):
            with checks.check(f"{algorithm} both ways, {'binary' if binary else 'JSON'}"):
                answer = client.infer(
                    MODEL,
                    [given("x", X, binary=binary)],
                    outputs=[wanted("y", binary_data=binary)],
                    request_compression_algorithm=algorithm,
                    response_compression_algorithm=algorithm,
                )
                same(answer)
        with checks.check(f"{algorithm} in alone and out alone"):
            same(client.infer(MODEL, [given("x", X)], request_compression_algorithm=algorithm))
            same(client.infer(MODEL, [given("x", X)], response_compression_algorithm=algorithm))
    with checks.check("a version in the path, by counter and by version"):
        for version in (COUNTER, VERSION):
            same(client.infer(MODEL, [given("x", X)], model_version=version))
    with checks.check("an older version beside the newest, by counter and by version"):
        for version in OLDER:
            answer = client.infer(MODEL, [given("x", X)], model_version=version)
            same(answer, 3 * X + 1)
            assert answer.get_response()["model_version"] in OLDER
    with checks.check("the answer names model, version and id"):
        said = client.infer(MODEL, [given("x", X)], request_id="call 1").get_response()
        assert (said["model_name"], said["id"]) == (MODEL, "call 1")
        assert said["model_version"] in (VERSION, COUNTER)
    with checks.check("priority and timeout"):
        same(client.infer(MODEL, [given("x", X)], priority=1, timeout=5_000_000))
    with checks.check("headers, query and own parameters pass by"):
        same(
            client.infer(
                MODEL,
                [given("x", X)],
                headers={"X-Request-Id": "r-1"},
                query_params={"a": "b", "c": 1},
                parameters={"mine": "yes", "number": 3, "flag": True},
            )
        )
    with checks.check("an empty batch"):
        assert client.infer(MODEL, [given("x", X[:0])]).as_numpy("y").size == 0
    with checks.check("50,000 rows"):
        many = np.random.default_rng(1).random((50_000, 3), np.float32)
        np.testing.assert_allclose(client.infer(MODEL, [given("x", many)]).as_numpy("y"), 2 * many + 1, rtol=1e-6)
    with checks.check("a body that the client makes and reads without sending it"):
        body, size = triton.InferenceServerClient.generate_request_body([given("x", X)], outputs=[wanted("y")])
        headers = {"Inference-Header-Content-Length": str(size)}
        answer = urllib3.request("POST", f"http://{PLACE}/v2/models/{MODEL}/infer", body=body, headers=headers, timeout=20)
        length = int(answer.headers["Inference-Header-Content-Length"])
        same(triton.InferenceServerClient.parse_response_body(answer.data, header_length=length))
    with checks.check("calls at once answer each its own"):
        calls = [client.async_infer(MODEL, [given("x", X + number)]) for number in range(8)]
        for number, call in enumerate(calls):
            same(call.get_result(), 2 * (X + number) + 1)


def kinds(checks: Checks, client: Any) -> None:
    """Every datatype, as raw bytes and as JSON, at its borders."""
    for binary in (True, False):
        form = "binary" if binary else "JSON"
        inputs = [given(name, array, binary=binary or name in HALVES) for name, array in BORDERS.items()]
        outputs = [wanted(f"out_{name}", binary_data=binary or name in HALVES) for name in BORDERS]
        with checks.check(f"all datatypes at once, {form}"):
            answer = client.infer(KINDS, inputs, outputs=outputs)
        for name, array in BORDERS.items():
            with checks.check(f"{name} as {form}"):
                same(answer, array, f"out_{name}")
    with checks.check("one output of many, and in the order that was asked for"):
        inputs = [given(name, array) for name, array in BORDERS.items()]
        said = client.infer(KINDS, inputs, outputs=[wanted("out_INT8"), wanted("out_BOOL")])
        assert [one["name"] for one in said.get_response()["outputs"]] == ["out_INT8", "out_BOOL"]


def texts(checks: Checks, client: Any) -> None:
    """BYTES, where a model takes them."""
    words = np.array(["a", "", "äöü"], object)
    for binary in (True, False):
        with checks.check(f"text as {'binary' if binary else 'JSON'}"):
            answer = client.infer(
                TEXTS, [given("text", words, binary=binary)], outputs=[wanted("upper", binary_data=binary)]
            )
            got = [one if isinstance(one, str) else one.decode() for one in answer.as_numpy("upper")]
            assert got == ["A", "", "äöü"] or got == ["A", "", "ÄÖÜ"], got


def classes(checks: Checks, client: Any) -> None:
    """The classification extension; the labels are red, green, blue and the highest score is the last."""
    for binary in (True, False):
        with checks.check(f"the two best classes, {'binary' if binary else 'JSON'}"):
            answer = client.infer(MODEL, [given("x", X)], outputs=[wanted("y", binary_data=binary, class_count=2)])
            found = answer.as_numpy("y")
            assert found.shape == (4, 2), found
            text = [[one if isinstance(one, str) else one.decode() for one in row] for row in found]
            assert [[one.split(":")[1:] for one in row] for row in text] == [[["2", "blue"], ["1", "green"]]] * 4, text
            assert [float(row[0].split(":")[0]) for row in text] == EXPECTED[:, 2].tolist()


def wrong(checks: Checks, client: Any) -> None:
    """Mistakes of the caller: each an error with a status and a sentence."""
    for what, work, word in (
        ("an unknown model", lambda: client.infer("nothing", [given("x", X)]), "nothing"),
        ("an unknown version", lambda: client.infer(MODEL, [given("x", X)], model_version="99"), "99"),
        ("an unknown input", lambda: client.infer(MODEL, [given("x", X), given("z", X)]), "z"),
        ("an unknown output", lambda: client.infer(MODEL, [given("x", X)], outputs=[wanted("z")]), "z"),
        ("a missing input", lambda: client.infer(KINDS, [given("BOOL", BORDERS["BOOL"])]), "missing"),
        ("a wrong shape", lambda: client.infer(MODEL, [given("x", X[:, :2])]), "shape"),
        ("a wrong rank", lambda: client.infer(MODEL, [given("x", X[0])]), "shape"),
        ("a wrong datatype", lambda: client.infer(MODEL, [given("x", X.astype(np.int32))]), "INT32"),
    ):
        with checks.check(f"{what} is refused"):
            refused(work, word)
    for what, work in {
        "trace settings": client.get_trace_settings,
        "log settings": client.get_log_settings,
        "system shared memory": client.get_system_shared_memory_status,
        "CUDA shared memory": client.get_cuda_shared_memory_status,
        "registering shared memory": lambda: client.register_system_shared_memory("a", "/a", 64),
    }.items():
        with checks.check(f"{what}, which we do not have, is an error that can be read"):
            refused(work)
    with checks.check("shared memory in a request is refused"):
        tensor = triton.InferInput("x", [4, 3], "FP32")
        tensor.set_shared_memory("a", 48)
        refused(lambda: client.infer(MODEL, [tensor]))


def counted(checks: Checks, client: Any) -> None:
    """Statistics: each call is counted once, with its rows."""
    with checks.check("statistics count calls and rows"):
        before = stats(client)
        for _ in range(3):
            client.infer(MODEL, [given("x", X)])
        after = stats(client)
        assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 3
        assert after["inference_count"] - before["inference_count"] == 3 * len(X)
        assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
        assert after["last_inference"] >= before["last_inference"]
    with checks.check("statistics count refusals"):
        before = stats(client)["inference_stats"]["fail"]["count"]
        refused(lambda: client.infer(MODEL, [given("x", X[0])]))
        assert stats(client)["inference_stats"]["fail"]["count"] == before + 1
    with checks.check("statistics of one version and of all models"):
        assert stats(client, COUNTER)["name"] == MODEL
        assert {MODEL, KINDS} <= {one["name"] for one in client.get_inference_statistics()["model_stats"]}


def stats(client: Any, version: str = "") -> Any:
    """Return what was counted for the model."""
    found = client.get_inference_statistics(MODEL, version)["model_stats"]
    (one,) = [one for one in found if one["version"] not in OLDER]
    return one


def life(checks: Checks, client: Any) -> None:
    """Unload and load; what would change a signed model is refused."""
    with checks.check("a model's files and configuration do not come with a load request"):
        refused(lambda: client.load_model(MODEL, config='{"max_batch_size": 1}'), "signed")
        refused(lambda: client.load_model(MODEL, config="{}", files={"file:1/model.onnx": b"abc"}), "signed")
    with checks.check("unload"):
        client.unload_model(KINDS)
        assert not client.is_model_ready(KINDS)
        states = {one["name"]: one["state"] for one in client.get_model_repository_index()}
        assert states[KINDS] == "UNAVAILABLE", states
    with checks.check("load"):
        client.load_model(KINDS)
        assert client.is_model_ready(KINDS)
        same(client.infer(KINDS, [given(name, array) for name, array in BORDERS.items()]), BORDERS["INT8"], "out_INT8")
    with checks.check("loading and unloading an unknown model is refused"):
        refused(lambda: client.load_model("nothing"), "nothing")
        refused(lambda: client.unload_model("nothing"), "nothing")


async def at_once(checks: Checks) -> None:
    """The asyncio client."""
    async with aio.InferenceServerClient(PLACE) as client:
        with checks.check("asyncio: health, metadata, index, statistics"):
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready(MODEL)
            assert (await client.get_model_metadata(MODEL))["name"] == MODEL
            assert (await client.get_model_config(MODEL))["name"] == MODEL
            assert MODEL in {one["name"] for one in await client.get_model_repository_index()}
            assert (await client.get_inference_statistics(MODEL))["model_stats"]
        with checks.check("asyncio: 64 calls at once answer each its own"):
            calls = [client.infer(MODEL, [given("x", X + number)]) for number in range(64)]
            for number, answer in enumerate(await asyncio.gather(*calls)):
                same(answer, 2 * (X + number) + 1)
        for algorithm in ("gzip", "deflate"):
            with checks.check(f"asyncio: {algorithm}"):
                how = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
                same(await client.infer(MODEL, [given("x", X)], **how))
        with checks.check("asyncio: a mistake is an error that can be read"):
            try:
                await client.infer(MODEL, [given("x", X[0])])
            except InferenceServerException as error:
                text = error.message()
            else:
                raise AssertionError("it was not refused")
            assert "shape" in text, text


def main() -> None:
    """Run every check."""
    checks = Checks()
    client = triton.InferenceServerClient(PLACE, concurrency=8)
    for part in (about, infer, kinds, classes, wrong, counted):
        part(checks, client)
    if TEXTS in {one["name"] for one in client.get_model_repository_index()}:
        texts(checks, client)
    asyncio.run(at_once(checks))
    life(checks, client)
    client.close()
    checks.tell()


if __name__ == "__main__":
    PLACE = sys.argv[1]
    main()
