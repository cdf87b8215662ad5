"""Speaks the public tuf-conformance suite's client protocol through our own trust client.

    --metadata-dir D init ROOT
    --metadata-dir D --metadata-url U refresh
    --metadata-dir D --metadata-url U --target-name N --target-base-url B --target-dir T download

Exit code 0 or 1; what is trusted stands in D under unversioned names, and our generations and journal beside it. With
`TOPROPE_ROAD=mqtt` an embedded broker is started, whatever is asked for is published on its topic just before, and every byte
comes from there. The suite's clock and build are not ours: neither our build's time nor our timestamps' life is assumed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient import Updater

from toprope_cloud.broker import BrokerFiles, Credentials, binary
from toprope_cloud.layout import Layout
from toprope_edge.journal import Journal
from toprope_edge.metadata import HttpSource, MqttSource, topic_of
from toprope_shared.blobs import replace_file
from toprope_shared.digest import sha256
from toprope_shared.errors import LinkError
from toprope_shared.link import Address, Link
from toprope_shared.topics import Topics
from toprope_shared.trusted import TrustedMetadata
from toprope_shared.verdicts import MetadataSource, Refreshed, Verdict

BOOTSTRAP, GENERATIONS, JOURNAL = "bootstrap", "generations", "journal.sqlite"
DEVICE = "conformance"
# Whatever is read was published just before. nats-server acknowledges a retained message a moment before a new subscription
# finds it; who subscribes in that moment is told nothing or the former one. So it is asked until it gives what was published.
START_S, PATIENCE_S, TIMES, LOOK_S = 60.0, 4.0, 10, 0.02
T = TypeVar("T")
ReadTarget = Callable[[str, int], bytes]


class Bridge:
    """Publishes what a URL serves, when it is asked for, and reads it from the broker.

    A `MetadataSource`: the source of the bytes is the HTTP server of the suite, the road is MQTT.
    """

    def __init__(self, http: HttpSource, cloud: Link, device: Link, loop: asyncio.AbstractEventLoop) -> None:
        self._http = http
        self._cloud = cloud
        self._device = device
        self._topics = Topics()
        self._loop = loop
        self._mqtt = MqttSource(device, self._topics, loop, patience_s=PATIENCE_S)

    def get(self, role: str, version: int | None) -> bytes:
        """Publish a metadata file, and the hint where it is a root, then read it as a device does."""
        try:
            data = self._http.get(role, version)
        except FileNotFoundError:
            if role != Root.type or version is None:
                raise LinkError(f"nobody publishes {role} {version or ''}".rstrip()) from None
            self._hint(version - 1)
            return self._mqtt.get(role, version)
        self._publish(topic_of(self._topics, role, version), data)
        if role == Root.type and version is not None:
            self._hint(version)
        return self._mqtt.get(role, version)

    def read_target(self, url: str, limit: int) -> bytes:
        """Publish a target's bytes and read them from the broker."""
        topic = f"{self._topics.prefix}/trust/target/{sha256(url.encode())}"
        self._publish(topic, read_url(url, limit))
        return self._run(self._device.retained(topic, timeout_s=PATIENCE_S))

    def _hint(self, newest: int) -> None:
        self._publish(self._topics.head, json.dumps({"root": newest, "snapshot": 0, "timestamp": 0}).encode())

    def _publish(self, topic: str, data: bytes) -> None:
        """Publish, and wait until a new subscription finds it.

        Raises:
            LinkError: it is not found.
        """
        self._run(self._cloud.publish(topic, data, qos=1, retain=True))
        for _ in range(TIMES):
            with suppress(LinkError):
                if self._run(self._device.retained(topic, timeout_s=PATIENCE_S)) == data:
                    return
        raise LinkError(f"the broker took {topic} and does not give it back")

    def _run(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(START_S)


def read_url(url: str, limit: int) -> bytes:
    """Return a target's bytes over HTTP."""
    base, _, name = url.rpartition("/")
    return HttpSource(base).read(name, limit)


@asynccontextmanager
async def broker(root: bytes) -> AsyncIterator[tuple[str, Credentials, Credentials]]:
    """Run the embedded broker for as long as the context lasts; yield its address, the cloud's and a device's credentials."""
    with tempfile.TemporaryDirectory() as home:
        layout = Layout(Path(home))
        replace_file(layout.trust / "1.root.json", root)
        files = BrokerFiles(layout)
        folder = files.enroll(DEVICE)
        device = msgspec.json.decode((folder / "credentials.json").read_bytes(), type=Credentials)
        process, port = await started(files)
        try:
            yield f"mqtt://127.0.0.1:{port}", files.cloud(), device
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def started(files: BrokerFiles) -> tuple[asyncio.subprocess.Process, int]:
    """Start the broker on a free port; on another one when somebody was quicker to take it.

    Raises:
        TimeoutError: it does not listen within `START_S`.
    """
    quiet = asyncio.subprocess.DEVNULL
    async with asyncio.timeout(START_S):
        while True:
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                port = int(sock.getsockname()[1])
            config = files.write_config("127.0.0.1", port)
            process = await asyncio.create_subprocess_exec(binary(), "--config", str(config), stdout=quiet, stderr=quiet)
            try:
                if await listens(process, port):
                    return process, port
            except asyncio.CancelledError:
                process.kill()
                raise


async def listens(process: asyncio.subprocess.Process, port: int) -> bool:
    """Wait until a process answers on its port; False when it has ended before."""
    while process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(LOOK_S)
            continue
        writer.close()
        return True
    return False


async def over_mqtt(root: bytes, url: str, work: Callable[[MetadataSource, ReadTarget], bool]) -> bool:
    """Do the work in a worker thread with the broker as its road."""
    async with broker(root) as (address, cloud, device), link_of(address, cloud) as up, link_of(address, device) as down:
        await up.wait_connected(START_S)
        await down.wait_connected(START_S)
        bridge = Bridge(HttpSource(url), up, down, asyncio.get_running_loop())
        return await asyncio.to_thread(work, bridge, bridge.read_target)


def link_of(address: str, who: Credentials) -> Link:
    """Return a connection with these credentials."""
    return Link((Address.parse(address),), client_id=who.client_id, username=who.username, password=who.password)


class Client:
    """One client's state in the suite's metadata folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = (folder / BOOTSTRAP).read_bytes()
        self._metadata = TrustedMetadata(folder / GENERATIONS, self.root, built_s=0, timestamp_life_s=None)

    def refresh(self, source: MetadataSource, name: str | None = None) -> tuple[Refreshed, TargetFile | None]:
        """Refresh, look a target up, and lay out what is trusted under unversioned names."""
        found: list[TargetFile | None] = [None]

        def lookup(updater: Updater, _: Path) -> None:
            found[0] = updater.get_targetinfo(name) if name is not None else None

        journal = Journal(self._folder / JOURNAL)
        try:
            refreshed = self._metadata.refresh(source, lookup, journal.trust_floors())
            journal.keep_trust_floors(refreshed.floors)
        finally:
            journal.close()
        kept = self._metadata.kept()
        for path in kept.glob("*.json") if kept else ():
            shutil.copyfile(path, self._folder / path.name)
        return refreshed, found[0]

    def download(self, source: MetadataSource, read: ReadTarget, args: argparse.Namespace) -> bool:
        """Refresh, then bring a target into the target folder unless it is there already."""
        refreshed, target = self.refresh(source, args.target_name)
        if refreshed.verdict is not Verdict.FRESH or target is None:
            return say(refreshed.reason or f"nobody signs {args.target_name}")
        file = Path(args.target_dir) / quote(target.path, "")
        if file.exists() and fits(target, file.read_bytes()):
            return True
        data = read(self._url_of(target, args.target_base_url), target.length + 1)
        if not fits(target, data):
            return say(f"{target.path} is not what was signed")
        replace_file(file, data)
        return True

    def _url_of(self, target: TargetFile, base: str) -> str:
        folder, slash, name = target.path.rpartition("/")
        root = Metadata[Root].from_file(str(self._folder / "root.json")).signed
        prefix = f"{next(iter(target.hashes.values()))}." if root.consistent_snapshot else ""
        return f"{base.rstrip('/')}/{folder}{slash}{prefix}{name}"


def fits(target: TargetFile, data: bytes) -> bool:
    """Say whether bytes are what was signed."""
    try:
        target.verify_length_and_hashes(data)
    except RepositoryError:
        return False
    return True


def say(text: str) -> bool:
    """Tell why it failed."""
    print(f"tuf_client: {text}", file=sys.stderr)
    return False


def work_of(client: Client, args: argparse.Namespace) -> Callable[[MetadataSource, ReadTarget], bool]:
    """Return what a command does with a road."""

    def refresh(source: MetadataSource, _: ReadTarget) -> bool:
        refreshed, _found = client.refresh(source)
        return refreshed.verdict is Verdict.FRESH or say(f"{refreshed.verdict}: {refreshed.reason}")

    def download(source: MetadataSource, read: ReadTarget) -> bool:
        return client.download(source, read, args)

    return download if args.command == "download" else refresh


def arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="tuf_client")
    for name in ("metadata-dir", "metadata-url", "target-name", "target-base-url", "target-dir"):
        parser.add_argument(f"--{name}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("trusted_root")
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Run one command; return the exit code."""
    args = arguments(words)
    folder = Path(args.metadata_dir)
    if args.command == "init":
        for name in (BOOTSTRAP, "root.json"):
            shutil.copyfile(args.trusted_root, folder / name)
        return 0
    client = Client(folder)
    work = work_of(client, args)
    try:
        if os.environ.get("TOPROPE_ROAD") == "mqtt":
            return 0 if asyncio.run(over_mqtt(client.root, args.metadata_url, work)) else 1
        return 0 if work(HttpSource(args.metadata_url), read_url) else 1
    except (LinkError, FileNotFoundError, RepositoryError, TimeoutError) as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
