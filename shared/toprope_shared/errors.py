"""Every error that toprope raises on purpose, branched by what the receiver should do.

    TopropeError
    ├── InputError           the caller's files, flags or settings: mend them (exit code 2)
    │   └── GateError        a release that did not pass its gates
    ├── RequestError         an inference request that is wrong: never falls back
    │   ├── NotFoundError    the model, version or path does not exist
    │   ├── ConflictError    what it is asked of is not in the state for it
    │   ├── TooLargeError    the body passes the limit
    │   ├── NotAdmittedError  there are no credentials, or none that are known
    │   └── NotAllowedError  the credentials are for something else
    ├── UnavailableError     nobody can answer now: says both reasons, may be asked again
    │   ├── OverloadedError  too many wait already: ask again a little later
    │   └── TooManyRequestsError  this caller asks too often
    ├── DeadlineError        the caller's time ran out
    ├── TrustError           not signed, not allowed or older than the floor: never retry
    ├── LinkError            the broker or the cloud is away: wait
    └── DeviceError          this machine could not do it: roll back or fall back
        ├── IntegrityError   bytes are not what their digest says
        ├── LoadError        an engine did not open the file
        ├── EngineError      an engine failed while it ran
        └── ProbeError       a candidate did not pass the try-out in the child process

Each class has a stable `code` that travels in reports and HTTP bodies. HTTP status codes live in the doors alone.
"""

from __future__ import annotations


class TopropeError(Exception):
    """Root of the tree; its text is a sentence that a user may read."""

    code = "error"


class InputError(TopropeError):
    """A file, flag or setting is wrong; the text says what was expected and what to do."""

    code = "bad_input"


class GateError(InputError):
    """A release did not pass its gates; the text holds the table."""

    code = "gate_failed"


class RequestError(TopropeError):
    """The inference request is wrong; no other place would answer it better."""

    code = "bad_request"


class NotFoundError(RequestError):
    """The model, version or path that was asked for does not exist."""

    code = "not_found"


class ConflictError(RequestError):
    """What was asked for exists and is not in the state for it, now or any more."""

    code = "conflict"


class TooLargeError(RequestError):
    """The request's body is larger than the door takes."""

    code = "too_large"


class NotAdmittedError(RequestError):
    """The caller showed no credentials, or none that are known here."""

    code = "not_admitted"


class NotAllowedError(RequestError):
    """The caller is known and may not do this.

    Args:
        message: the sentence for the caller.
        caller: his name.
    """

    code = "not_allowed"

    def __init__(self, message: str, *, caller: str = "") -> None:
        super().__init__(message)
        self.caller = caller


class UnavailableError(TopropeError):
    """Nobody can answer now.

    Args:
        message: the sentence for the caller.
        reasons: why the edge did not answer, and why the cloud did not help.
        retry_after_s: seconds after which asking again makes sense.
    """

    code = "unavailable"

    def __init__(self, message: str, *, reasons: tuple[str, ...] = (), retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.reasons = reasons
        self.retry_after_s = retry_after_s


class OverloadedError(UnavailableError):
    """Too many requests wait already; this one was not begun.

    Args:
        message: the sentence for the caller.
        retry_after_s: seconds after which asking again makes sense.
    """

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, reasons=("overloaded",), retry_after_s=retry_after_s)


class TooManyRequestsError(UnavailableError):
    """This caller has asked more often than he may.

    Args:
        message: the sentence for the caller.
        caller: his name.
        retry_after_s: seconds after which he may ask again.
    """

    code = "too_many_requests"

    def __init__(self, message: str, *, caller: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.caller = caller


class DeadlineError(TopropeError):
    """The time that the caller gave ran out before there was an answer."""

    code = "deadline"


class TrustError(TopropeError):
    """Something is not signed as it must be, or is older than what was already trusted."""

    code = "untrusted"


class LinkError(TopropeError):
    """The broker, the cloud or the way there is away; trying later may help."""

    code = "link"


class DeviceError(TopropeError):
    """This machine could not do it."""

    code = "device"


class IntegrityError(DeviceError):
    """Bytes on disk or off the wire do not have the digest that they should have."""

    code = "integrity_failed"


class LoadError(DeviceError):
    """An engine did not open the file."""

    code = "load_failed"


class EngineError(DeviceError):
    """An engine failed while it ran."""

    code = "local_error"


class ProbeError(DeviceError):
    """A candidate did not pass the try-out in the child process.

    Args:
        message: the sentence, which names engine, stage and signal.
        stage: where it ended: digest, load, golden or latency.
        reason: the code of what the child found, or `crashed`, `hung`, `out_of_memory`.
        signal: the name of the signal that ended the child, e.g. SIGSEGV; "" when it ended by itself.
        exit_code: the child's, when it ended by itself without an answer.
        tail: the end of what the engine wrote to standard error.
    """

    code = "probe_failed"

    def __init__(
        self,
        message: str,
        *,
        stage: str = "",
        reason: str = "",
        signal: str = "",
        exit_code: int | None = None,
        tail: str = "",
    ) -> None:
        super().__init__(message)
        self.stage = stage
        self.reason = reason or self.code
        self.signal = signal
        self.exit_code = exit_code
        self.tail = tail
