"""Asks one server over HTTP, for the commands: a good answer, or one of our errors with a sentence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from toprope_shared.errors import DeadlineError, InputError, LinkError, NotFoundError, RequestError, UnavailableError

if TYPE_CHECKING:
    import urllib3

AGENT_URL = "http://127.0.0.1:8501"
CLOUD_URL = "http://127.0.0.1:8000"


class Client:
    """Asks one server, once; nothing is sent again by itself. Where there is an API key, it is shown."""

    def __init__(self, url: str, timeout_s: float, *, advice: str = "", key: str = "") -> None:
        import urllib3

        self._advice = advice
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._shown = {"Authorization": f"Bearer {key}"} if key else {}
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=timeout_s))

    def get(self, path: str) -> Any:
        """Return the JSON of a good answer; raises as `ask` does."""
        return self.read(self.ask("GET", path))

    def read(self, answer: urllib3.BaseHTTPResponse) -> Any:
        """Return an answer's JSON.

        Raises:
            LinkError: it is none.
        """
        try:
            return json.loads(answer.data)
        except (ValueError, RecursionError) as error:
            raise LinkError(f"what answers at {self._url} does not speak the Open Inference Protocol") from error

    def ask(self, method: str, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
        """Return a good answer.

        Raises:
            InputError: the URL is not one.
            LinkError: nothing answers there.
            RequestError: the server refused the request.
            DeadlineError, UnavailableError: it could not answer.
        """
        import urllib3

        try:
            headers = {**self._shown, **more.pop("headers", {})}
            answer = self._pool.request(method, self._url + path, redirect=False, headers=headers, **more)
        except urllib3.exceptions.LocationValueError as error:
            raise InputError(f"{self._url} is not a URL; write e.g. {AGENT_URL}") from error
        except urllib3.exceptions.NewConnectionError as error:
            raise LinkError(f"nothing listens at {self._url}{self._advice}") from error
        except urllib3.exceptions.TimeoutError as error:
            raise DeadlineError(f"{self._url} did not answer within {self._timeout_s:g} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise LinkError(f"the connection to {self._url} failed: {error}") from error
        if answer.status != 200:
            _refuse(answer)
        return answer


def _refuse(answer: urllib3.BaseHTTPResponse) -> NoReturn:
    try:
        body = json.loads(answer.data)
        sentence = str(body["error"])
        reasons = tuple(map(str, body.get("reasons", ())))
    except (ValueError, TypeError, KeyError, RecursionError):
        reasons, sentence = (), f"the server answered HTTP {answer.status} without saying why"
    if answer.status == 404:
        raise NotFoundError(sentence)
    if 400 <= answer.status < 500 and answer.status != 429:
        raise RequestError(sentence)
    if answer.status == 504:
        raise DeadlineError(sentence)
    raise UnavailableError(f"{sentence} ({', '.join(reasons)})" if reasons else sentence, reasons=reasons)
