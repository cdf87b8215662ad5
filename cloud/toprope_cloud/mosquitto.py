"""What mosquitto needs to stand in for the embedded broker: configuration, access list and password file, as text. Pure but
for the salt and for looking the program up.

Formats: mosquitto.conf(5) of 2.0; the password file is that of mosquitto_passwd(1), `$7$` is PBKDF2 with HMAC-SHA-512.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from toprope_shared.errors import InputError
from toprope_shared.topics import Topics

PROGRAM = "mosquitto"
STORE, PASSWORDS, ACCESS = "mosquitto.db", "mosquitto.passwd", "mosquitto.acl"
AUTOSAVE_S = 5
MAX_PACKET_BYTES = 1 << 20
SALT_BYTES, ITERATIONS = 12, 101  # as mosquitto_passwd; our passwords are 24 random bytes and need no slowing down


def config(host: str, port: int, folder: Path, *, users: bool = True) -> str:
    """Return mosquitto's configuration.

    Retained messages are saved every five seconds, so a kill loses the newest; whoever published them does so again.

    Args:
        folder: absolute; holds the store, and the password file and the access list where there are users.
        users: whether clients need a password.
    """
    access = "allow_anonymous true"
    if users:
        access = f"allow_anonymous false\npassword_file {folder / PASSWORDS}\nacl_file {folder / ACCESS}"
    return f"""per_listener_settings false
user {getpass.getuser()}
listener {port} {host}
{access}
persistence true
persistence_location {folder}{os.sep}
persistence_file {STORE}
autosave_interval {AUTOSAVE_S}
max_queued_messages 0
max_queued_bytes 67108864
max_inflight_messages 64
max_packet_size {MAX_PACKET_BYTES}
set_tcp_nodelay true
"""


def access(topics: Topics, cloud: str) -> str:
    """Return the access list: the cloud everything below the prefix, each device its own topics and what is for all."""
    write = ("need/+/%u", "d/%u/state", "d/%u/report", "d/%u/telemetry")
    read = ("d/%u/c", "d/%u/ack", "trust/#", "rollouts/+", "a/#")
    rules = [f"pattern write {topics.prefix}/{one}" for one in write]
    rules += [f"pattern read {topics.prefix}/{one}" for one in read]
    return "\n".join([f"user {cloud}", f"topic readwrite {topics.prefix}/#", "", *rules, ""])


def passwords(users: Iterable[tuple[str, str]]) -> str:
    """Return the password file of (name, password)."""
    return "".join(f"{name}:{_hashed(password)}\n" for name, password in users)


def _hashed(password: str) -> str:
    salt = secrets.token_bytes(SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
    return f"$7${ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def binary() -> str:
    """Return the path of mosquitto; distributions put it where only root's PATH leads.

    Raises:
        InputError: there is none.
    """
    found = shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")
    if found is None:
        raise InputError("mosquitto is not installed; apt install mosquitto, or run the embedded nats-server")
    return found
