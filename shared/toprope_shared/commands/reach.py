"""Whether broker, cloud and agent can be reached from here, and what their answers say of this machine's clock."""

from __future__ import annotations

import socket
import ssl
import struct
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from toprope_shared.commands.client import Client
from toprope_shared.commands.findings import Finding, Level
from toprope_shared.errors import DeadlineError, InputError, LinkError, RequestError, UnavailableError

if TYPE_CHECKING:
    from toprope_shared.link import Address

BROKER = "127.0.0.1:1883"
REACH_S = 2.0
# Answers' dates have whole seconds, and tokens and metadata forgive a little.
CLOCK_SLACK_S = 60.0
# Source: MQTT 3.1.1, section 3.2.2.3.
_REFUSED = {
    1: "it does not speak MQTT 3.1.1",
    2: "it refuses the client's id",
    3: "it is not available",
    4: "it refuses user name or password",
    5: "it does not let this device in",
}


def check_broker(address: str, otherwise: Level) -> Finding:
    """Say whether something listens at host:port; `otherwise` is how bad it is if not."""
    host, _, port = address.removeprefix("mqtt://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"{address!r} is not host:port; write e.g. {BROKER}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        text = f"no broker at {address} ({error})"
        return Finding("broker", otherwise, text, "start one, or name it with --broker")
    return Finding("broker", Level.OK, f"a broker listens at {address}")


def check_login(address: Address, client_id: str, username: str, password: str) -> Finding:
    """Say whether a broker lets this device in.

    Args:
        address: of the broker.
        client_id: another one than the running agent's, which would be cut off otherwise.
        username, password: the device's credentials.
    """
    try:
        code = _connect(address, client_id, username, password)
    except ssl.SSLError as error:
        text = f"the broker at {address} can't be spoken to over TLS ({error})"
        return Finding("broker", Level.ERROR, text, "install its certificate authority, or set this machine's clock")
    except (OSError, OverflowError) as error:
        return Finding("broker", Level.ERROR, f"no broker at {address} ({error})", "look at network, firewall and `broker`")
    if code is None:
        text = f"what listens at {address} does not answer as an MQTT broker"
        return Finding("broker", Level.ERROR, text, "set `broker` to the broker's own address")
    if code:
        why = _REFUSED.get(code, f"it refuses with code {code}")
        text = f"the broker at {address} does not accept {username}: {why}"
        return Finding("broker", Level.ERROR, text, "enrol the device again: toprope keys enroll DEVICE")
    return Finding("broker", Level.OK, f"the broker at {address} accepts {username}")


def _connect(address: Address, client_id: str, username: str, password: str) -> int | None:
    """Return the code of the broker's CONNACK; None when its answer is none. Source: MQTT 3.1.1, sections 3.1 and 3.2."""
    body = b"\x00\x04MQTT\x04\xc2" + struct.pack(">H", 30)  # clean session, with user name and password
    for text in (client_id, username, password):
        data = text.encode()
        body += struct.pack(">H", len(data)) + data
    with socket.create_connection((address.host, address.port), timeout=REACH_S) as plain:
        sock = plain
        if address.tls:
            sock = ssl.create_default_context().wrap_socket(plain, server_hostname=address.host)
        sock.sendall(b"\x10" + _length(len(body)) + body)
        answer = b""
        while len(answer) < 4 and (part := sock.recv(4 - len(answer))):
            answer += part
        if len(answer) < 4 or answer[:2] != b"\x20\x02":
            return None
        sock.sendall(b"\xe0\x00")
        return answer[3]


def _length(number: int) -> bytes:
    """Return MQTT's variable length: seven bits a byte, lowest first."""
    made = b""
    while True:
        number, low = divmod(number, 128)
        made += bytes([low | (0x80 if number else 0)])
        if not number:
            return made


def check_url(what: str, url: str, otherwise: Level, *, now: float | None = None) -> list[Finding]:
    """Say whether a server is alive at a URL, and where `now` is given, whether this machine's clock agrees with its own.

    Args:
        what: `cloud` or `agent`.
        url: where it listens.
        otherwise: how bad it is when it does not answer.
        now: seconds since 1970 of this machine.
    """
    client = Client(url, REACH_S)
    try:
        answer = client.ask("GET", "/v2/health/live")
        health: Any = client.read(answer)
    except (LinkError, RequestError, DeadlineError, UnavailableError) as error:
        text = f"the {what} at {url} does not answer ({error})"
        return [Finding(what, otherwise, text, f"start it, or name it with --{what}")]
    if not isinstance(health, dict) or not health.get("live"):
        text = f"what answers at {url} is not toprope"
        return [Finding(what, otherwise, text, f"name another with --{what}")]
    state = "" if health.get("ready") else ", alive but not ready"
    findings = [Finding(what, Level.OK, f"the {what} answers at {url}{state}")]
    if now is not None:
        findings += check_date(answer.headers.get("Date", ""), now)
    return findings


def check_date(date: str, now: float) -> list[Finding]:
    """Hold this machine's clock (seconds since 1970) against the `Date` of an answer; nothing where it has none."""
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return []
    off = now - theirs
    if abs(off) <= CLOCK_SLACK_S:
        return [Finding("clock", Level.OK, "this machine's clock agrees with the cloud's")]
    way = "ahead of" if off > 0 else "behind"
    text = f"this machine's clock is {abs(off):.0f} s {way} the cloud's"
    return [Finding("clock", Level.WARNING, text, "set it, e.g. with systemd-timesyncd or chrony")]
