"""Real brokers for the benchmarks, each alone on a free port of this machine, and an artifact to send."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from toprope_cloud.broker import binary
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import CHUNK_BYTES, ChunkManifest
from toprope_shared.manifest import Artifact

NATS, MOSQUITTO = "nats-server", "mosquitto"


def mosquitto_program(name: str = MOSQUITTO) -> str | None:
    """Return where one of mosquitto's programs is; Debian keeps the broker where users do not look."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def installed() -> tuple[str, ...]:
    """Return the brokers that can be started here."""
    return (MOSQUITTO, NATS) if mosquitto_program() else (NATS,)


@contextmanager
def broker(kind: str, folder: Path) -> Iterator[int]:
    """Run a broker without users for as long as the context lasts and give its MQTT port; links wait until it listens.

    nats-server's `max_pending` and mosquitto's queues are wide enough that neither drops what a flat-out publisher sends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    config = folder / f"{kind}.conf"
    if kind == MOSQUITTO:
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\nset_tcp_nodelay true\n"
        )
        command = [mosquitto_program() or kind, "-c", str(config)]
    else:
        config.write_text(
            f'server_name: bench\nlisten: "127.0.0.1:-1"\nmax_payload: 1MB\nmax_pending: 256MB\n'
            f'jetstream {{ store_dir: "{folder / "js"}" }}\nmqtt {{ host: "127.0.0.1", port: {port} }}\n'
        )
        command = [binary(), "--config", str(config)]
    with (folder / f"{kind}.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.kill()
        process.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def make_artifact(store: Blobs, size: int, chunk_bytes: int = CHUNK_BYTES) -> Artifact:
    """Store random bytes with their chunk manifest."""
    data = random.Random(size).randbytes(size)
    table = ChunkManifest.build(BytesIO(data), chunk_bytes).encode()
    return Artifact(store.put(data), size, store.put(table), len(table))
