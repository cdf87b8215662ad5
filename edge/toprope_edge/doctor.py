"""What `toprope doctor` looks at on an enrolled device: enrolment, state, clock, trust, broker, cloud and the agent's doors.

It only reads, and never uses the running agent's client id, which would cut the agent off. A machine that is no device has
nothing to be said here.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Timestamp

from toprope_edge.settings import NONE, EdgeSettings, Enrolment, read_enrolment, socket_path, state_folder
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.commands.doctor import check_folder
from toprope_shared.commands.findings import Asked, Finding, Level
from toprope_shared.commands.reach import REACH_S, check_broker, check_login, check_url
from toprope_shared.errors import InputError
from toprope_shared.generations import Generations
from toprope_shared.link import Address
from toprope_shared.secure_time import look
from toprope_shared.settings import home, load
from toprope_shared.verdicts import SECURE_TIME

CLIENT_ID_END = "-doctor"
WARN_BEFORE_S = 30 * 86_400.0
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class _Named(msgspec.Struct):
    """Whether this machine is a device at all."""

    device: str = ""


def checks(asked: Asked, *, clock: Clock | None = None) -> list[Finding]:
    """Return what was found; nothing where no device is named.

    Raises:
        InputError: the settings can't be read.
    """
    flags = {"device": asked.device, "broker": None, "cloud": asked.cloud}
    if not load(_Named, "edge", flags, file=asked.settings).device:
        return []
    settings = load(EdgeSettings, "edge", flags, file=asked.settings)
    now = (clock or SystemClock()).now()
    state = state_folder(settings, home())
    try:
        credentials, root = read_enrolment(settings, home())
    except InputError as error:
        return [Finding("enrolment", Level.ERROR, str(error))]
    return [
        *check_enrolment(settings, credentials, root),
        *check_state(state),
        *check_clock(state, now),
        *check_trust(state, now),
        *_check_brokers(settings, credentials, asked),
        *_check_cloud(settings, now),
        *_check_agent(settings, state, asked),
    ]


def check_enrolment(settings: EdgeSettings, credentials: Enrolment, root: bytes) -> list[Finding]:
    """Say whether the enrolment is this device's, private, and anchored in a root that can be read."""
    folder = Path(settings.enrolment) if settings.enrolment else home() / "devices" / settings.device
    findings = []
    if credentials.device != settings.device:
        text = f"the enrolment in {folder} is {credentials.device}'s and not {settings.device}'s"
        findings.append(Finding("enrolment", Level.ERROR, text, "set `device` or `enrolment` right"))
    file = folder / "credentials.json"
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & _OTHERS:
        text = f"{file} has mode {mode:04o}, so others on this machine may read the password"
        findings.append(Finding("enrolment", Level.WARNING, text, f"chmod 600 {file}"))
    try:
        Metadata[Root].from_bytes(root)
    except RepositoryError as error:
        text = f"{folder / 'root.json'} is no root metadata ({error})"
        findings.append(Finding("enrolment", Level.ERROR, text, f"toprope keys enroll {settings.device}"))
    return findings or [Finding("enrolment", Level.OK, f"{settings.device} is enrolled")]


def check_state(state: Path) -> list[Finding]:
    """Say whether the state folder can be written, has room, and whether an agent runs on it."""
    findings = check_folder(state, "give it to the agent's user, mount it writable, or set `state`")
    holder = lock_holder(state / "lock")
    text = f"an agent runs on {state} (process {holder})" if holder else f"no agent runs on {state}"
    advice = "" if holder else "start one: toprope edge run, or systemctl start toprope-edge"
    return [*findings, Finding("lock", Level.OK if holder else Level.WARNING, text, advice)]


def lock_holder(lock: Path) -> int | None:
    """Return the process that holds a flock on a file; None when there is none. Taking it to find out could stop an agent.

    Source: proc_locks(5): `1: FLOCK  ADVISORY  WRITE 1234 fe:01:5678 0 EOF`.
    """
    try:
        inode = str(lock.stat().st_ino)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
            return int(words[4])
    return None


def check_clock(state: Path, now: float) -> list[Finding]:
    """Hold this machine's clock against the last secure time; see `secure_time`."""
    path = state / "journal.sqlite"
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=REACH_S)) as db:
            row = db.execute("SELECT value FROM trust_floors WHERE name = ?", (SECURE_TIME,)).fetchone()
    except sqlite3.Error as error:
        text = f"the journal {path} can't be read ({error})"
        return [Finding("journal", Level.ERROR, text, "look at its permissions and at the disk")]
    moment = look(now, int(row[0]) if row else 0)
    if moment.known:
        return [Finding("secure-time", Level.OK, "this machine's clock is not behind what signed metadata proves")]
    behind = moment.at - now
    text = f"this machine's clock is {behind:.0f} s behind what signed metadata proves, so no update starts"
    return [Finding("secure-time", Level.ERROR, text, "set it, e.g. with systemd-timesyncd or chrony, or a battery")]


def check_trust(state: Path, now: float) -> list[Finding]:
    """Say whether the kept root and timestamp metadata are in their time."""
    folder = Generations(state / "trust").newest() if (state / "trust").is_dir() else None
    if folder is None:
        text = "this device has not seen any trust metadata yet"
        return [
            Finding("trust", Level.WARNING, text, "let it reach broker or cloud once, or: toprope edge trust --from DIR")
        ]
    findings = []
    for role in (Root.type, Timestamp.type):
        try:
            expires = Metadata.from_file(str(folder / f"{role}.json")).signed.expires
        except (OSError, RepositoryError) as error:
            findings.append(Finding("trust", Level.ERROR, f"the kept {role} metadata can't be read ({error})"))
            continue
        findings.append(_expiry(role, expires.timestamp() - now, f"{expires:%Y-%m-%d}"))
    return findings


def _expiry(role: str, left_s: float, day: str) -> Finding:
    renew = "let the device reach broker or cloud"
    if role == Root.type:
        renew = "renew it where the keys are: toprope keys renew root"
    if left_s <= 0:
        return Finding("trust", Level.ERROR, f"the {role} metadata expired on {day}, so no update starts", renew)
    if role == Root.type and left_s < WARN_BEFORE_S:
        return Finding("trust", Level.WARNING, f"the {role} metadata expires on {day}", renew)
    return Finding("trust", Level.OK, f"the {role} metadata is good until {day}")


def _check_brokers(settings: EdgeSettings, credentials: Enrolment, asked: Asked) -> list[Finding]:
    if asked.broker:
        return [check_broker(asked.broker, Level.ERROR)]
    found = []
    for url in settings.broker.split(","):
        client_id = credentials.client_id + CLIENT_ID_END
        found.append(check_login(Address.parse(url), client_id, credentials.username, credentials.password))
    return found


def _check_cloud(settings: EdgeSettings, now: float) -> list[Finding]:
    if settings.cloud == NONE:
        return [Finding("cloud", Level.OK, "this device has no cloud to fall back to, as the setting `cloud` says")]
    return check_url("cloud", settings.cloud, Level.WARNING, now=now)


def _check_agent(settings: EdgeSettings, state: Path, asked: Asked) -> list[Finding]:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 - asked, not bound
    findings = check_url("agent", asked.agent or f"http://{host}:{settings.port}", Level.WARNING)
    path = socket_path(settings, state)
    if path is not None:
        findings.append(_check_socket(path))
    return findings


def _check_socket(path: Path) -> Finding:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(REACH_S)
        try:
            sock.connect(os.fspath(path))
        except PermissionError:
            text = f"this user may not use the agent's socket {path}"
            return Finding("socket", Level.WARNING, text, "join the group of the file")
        except OSError as error:
            text = f"nobody listens at the agent's socket {path} ({error.strerror or error})"
            return Finding("socket", Level.WARNING, text, "start the agent, or use its URL")
    return Finding("socket", Level.OK, f"the agent listens at {path}")
