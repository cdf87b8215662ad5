"""Asks agents and the cloud over HTTP, as any client would, and holds the answers against what the story expects."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import urllib3
from numpy.typing import NDArray
from processes import OK, StoryError

SETTLE_S = 20.0
PAUSE_S = 0.2
UNAVAILABLE = 503
Way = tuple[str, str]  # the origin of an answer and the reason why it was not the device
EDGE: Way = ("edge", "")
UNSURE: Way = ("cloud", "low_confidence")

_pool = urllib3.PoolManager(retries=False, timeout=10.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; `body` is its JSON document."""

    status: int
    body: dict[str, Any]
    origin: str = ""
    fallback: str = ""
    runtime: str = ""
    model: str = ""
    confidence: float = 1.0

    def tell(self) -> str:
        """Say who answered, in words."""
        if self.status != OK:
            return f"HTTP {self.status}: {self.body.get('error', self.body)}"
        why = f" because of {self.fallback}" if self.fallback else ""
        return f"{self.model} on {self.runtime}, origin {self.origin}{why}"


def ask(method: str, url: str, body: Any = None) -> Answer:
    """Send one request.

    Raises:
        StoryError: nobody answers there, or the answer is no JSON object.
    """
    data = None if body is None else json.dumps(body).encode()
    try:
        got = _pool.request(method, url, body=data, headers={"Content-Type": "application/json"})
        document = json.loads(got.data or b"{}")
    except urllib3.exceptions.HTTPError as error:
        raise StoryError(f"{method} {url} got no answer: {error}") from error
    except ValueError as error:
        raise StoryError(f"{method} {url} was answered with something that is no JSON: {error}") from error
    said = got.headers
    return Answer(
        got.status,
        document if isinstance(document, dict) else {},
        origin=said.get("Inference-Origin", ""),
        fallback=said.get("Inference-Fallback", ""),
        runtime=said.get("Inference-Runtime", ""),
        model=said.get("Inference-Model", ""),
        confidence=float(said.get("Inference-Confidence", "1")),
    )


def digit(url: str, image: NDArray[np.float32]) -> Answer:
    """Ask for one digit by the Open Inference Protocol."""
    tensor = {"name": "image", "shape": [1, 8, 8, 1], "datatype": "FP32", "data": image.ravel().tolist()}
    return ask("POST", f"{url}/v2/models/digits/infer", {"inputs": [tensor]})


def digit_tensorflow(url: str, image: NDArray[np.float32]) -> Answer:
    """Ask for one digit by TensorFlow Serving's REST API."""
    return ask("POST", f"{url}/v1/models/digits:predict", {"instances": [image.tolist()]})


def line(url: str, x: float) -> Answer:
    """Ask for one point of the line."""
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [x]}
    return ask("POST", f"{url}/v2/models/linear/infer", {"inputs": [tensor]})


def numbers(answer: Answer) -> list[float]:
    """Return the only output's values, of either protocol."""
    try:
        data = answer.body["outputs"][0]["data"] if "outputs" in answer.body else answer.body["predictions"][0]
        return [float(value) for value in np.asarray(data).ravel()]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise StoryError(f"this answer holds no output: {answer.body}") from error


def expect(what: str, question: Callable[[], Answer], *ways: Way, settle: float = 0.0) -> Answer:
    """Ask until the answer came in one of these ways, or fail with a sentence once `settle` seconds are over."""
    answer = _until(question, lambda got: got.status == OK and (got.origin, got.fallback) in ways, settle)
    if answer.status != OK or (answer.origin, answer.fallback) not in ways:
        wanted = " or ".join(f"origin {origin}" + (f" because of {why}" if why else "") for origin, why in ways)
        raise StoryError(f"{what}: expected an answer with {wanted}, and got {answer.tell()}.")
    return answer


def expect_nobody(what: str, question: Callable[[], Answer], first: str) -> Answer:
    """Ask and expect a 503 that names two reasons, the first of them `first`."""
    answer = _until(question, lambda got: got.status == UNAVAILABLE, SETTLE_S)
    reasons = answer.body.get("reasons")
    if answer.status != UNAVAILABLE or not isinstance(reasons, list) or len(reasons) != 2 or reasons[0] != first:
        raise StoryError(f"{what}: expected a 503 with {first} and a second reason, and got {answer.tell()}.")
    return answer


def _until(question: Callable[[], Answer], good: Callable[[Answer], bool], seconds: float) -> Answer:
    deadline = time.monotonic() + seconds
    while not good(answer := question()) and time.monotonic() < deadline:
        time.sleep(PAUSE_S)
    return answer


def fetch(url: str) -> bytes | None:
    """Return the bytes at `url`; None when there are none."""
    try:
        got = _pool.request("GET", url)
    except urllib3.exceptions.HTTPError as error:
        raise StoryError(f"GET {url} got no answer: {error}") from error
    return got.data if got.status == OK else None
