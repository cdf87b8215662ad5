"""What schemathesis holds our answers to beside its own checks: every error is `{"error": "a sentence"}`."""

from __future__ import annotations

from typing import Any

import schemathesis  # type: ignore[import-not-found]


@schemathesis.check  # type: ignore[untyped-decorator,unused-ignore]
def errors_say_why(ctx: Any, response: Any, case: Any) -> None:
    """Require a sentence in every error that has a body."""
    if response.status_code < 400 or case.method.upper() == "HEAD":
        return
    body = response.json()
    assert isinstance(body, dict), f"{response.status_code}: the body is no object"
    assert isinstance(body.get("error"), str), f"{response.status_code}: no sentence"
    assert body["error"], f"{response.status_code}: an empty sentence"
