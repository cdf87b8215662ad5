"""One line a request, and nothing secret or forged in it."""

from __future__ import annotations

import io
import json
import logging
from typing import Any, Literal

import pytest
from tests.fakes.clocks import ManualClock

from toprope_shared.serving.access_log import AccessLog

REQUEST: dict[str, Any] = {
    "method": "POST",
    "path": "/v2/models/digits/infer",
    "status": 200,
    "caller": "key:web",
    "request_id": "abc",
    "seconds": 0.0012345,
    "received": 120,
    "sent": 300,
    "model": "digits",
}


def lines(form: Literal["json", "text"], *requests: dict[str, Any]) -> list[str]:
    stream = io.StringIO()
    log = AccessLog(form, stream=stream, clock=ManualClock())
    for request in requests:
        log.note(**{**REQUEST, **request})
    return stream.getvalue().splitlines()


def test_a_line_of_json_says_everything_about_a_request() -> None:
    (line,) = lines("json", {})
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.000+00:00",
        "method": "POST",
        "path": "/v2/models/digits/infer",
        "status": 200,
        "ms": 1.234,
        "received": 120,
        "sent": 300,
        "model": "digits",
        "caller": "key:web",
        "request_id": "abc",
    }


def test_a_line_of_text_says_the_same() -> None:
    (line,) = lines("text", {})
    assert line == (
        '2023-11-14T22:13:20.000+00:00 200 POST "/v2/models/digits/infer" 1.234 ms, 120 B in, 300 B out, '
        'model "digits", caller "key:web", id abc'
    )


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_query_is_left_out_and_no_caller_begins_a_line_of_his_own(form: Literal["json", "text"]) -> None:
    made = lines(form, {"path": "/v2?key=tpr_secret"}, {"path": "/a\n2026 200 POST", "model": "x\ny", "caller": 'a"\r\nb'})
    assert len(made) == 2
    assert "tpr_secret" not in "".join(made)


def test_nothing_of_it_reaches_the_services_own_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        lines("json", {})
    assert caplog.text == ""
