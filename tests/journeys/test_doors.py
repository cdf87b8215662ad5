"""The device's local doors with a whole agent: the port, the Unix socket, the Python client and an MQTT binding at once."""

from __future__ import annotations

import asyncio
import signal
import socket
import stat
import subprocess
from pathlib import Path

import orjson
import pytest
from tests.faults.conftest import Broker
from tests.journeys.conftest import TOPROPE, World

import toprope_edge
from toprope_shared.errors import LinkError, NotFoundError
from toprope_shared.link import Address, Link

pytestmark = pytest.mark.timeout(240)


async def answer_over_mqtt(port: int, payload: bytes) -> tuple[str, bytes]:
    """Publish a message until something comes back, and return its topic and payload."""
    address = (Address("127.0.0.1", port),)
    async with Link(address, client_id="caller") as link, link.subscribe("plant/+/double/#") as heard:
        await link.wait_connected(20)
        async with asyncio.timeout(60):
            while True:
                await link.publish("plant/west/in", payload)
                try:
                    async with asyncio.timeout(0.5):  # the binding may not listen yet
                        message = await heard.get()
                        return message.topic, message.payload
                except TimeoutError:
                    continue


def test_the_same_model_answers_at_the_port_at_the_socket_and_on_a_topic(world: World, tmp_path: Path) -> None:
    local = Broker(tmp_path / "local-broker", "nats")
    path = world.home / "agent.sock"
    (world.home / "toprope.toml").write_text(
        f'[edge]\nsocket = "{path}"\n\n[[edge.bindings]]\nmodel = "double"\ntopic = "plant/+/in"\n'
        f'topic_out = "plant/{{1}}/double"\nbroker = "mqtt://127.0.0.1:{local.port}"\n'
    )
    try:
        with socket.socket(socket.AF_UNIX) as left:  # by an agent that was killed
            left.bind(str(path))
        world.device("dev-1", "--settings", str(world.home / "toprope.toml"))
        world.publish("1.0.0", 1, factor=2.0)
        world.until(lambda: world.running("dev-1") == ("1.0.0", "COMMITTED"), "dev-1 to run 1.0.0")
        assert world.ask("dev-1", 3.0)[1]["outputs"][0]["data"] == [6.0]
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        client = toprope_edge.connect(path)
        answer = client.infer("double", {"x": 3})
        assert (answer["y"].tolist(), answer.origin, answer.version) == ([[6.0]], "edge", "1.0.0")
        with pytest.raises(NotFoundError):
            client.infer("nothing", {"x": 3})
        topic, payload = asyncio.run(answer_over_mqtt(local.port, b"3"))
        told = orjson.loads(payload)
        assert (topic, told["outputs"], told["origin"]) == ("plant/west/double", {"y": [6.0]}, "edge")
        topic, payload = asyncio.run(answer_over_mqtt(local.port, b"three"))
        assert topic == "plant/west/double/error"
        assert orjson.loads(payload)["code"] == "bad_request"
        world.kill("dev-1", signal.SIGTERM)
        assert not path.exists()
        with pytest.raises(LinkError, match="no agent answers at"):
            client.infer("double", {"x": [[3.0]]})
    finally:
        local.kill()


def test_a_binding_that_would_answer_itself_is_refused_at_the_start_with_a_sentence(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.command("keys", "enroll", "dev-1")
    file = world.home / "wrong.toml"
    file.write_text('[edge]\ndevice = "dev-1"\n[[edge.bindings]]\nmodel = "m"\ntopic = "a/#"\ntopic_out = "a/b"\n')
    words = [TOPROPE, "edge", "run", "--settings", str(file), "--port", "0", "--cloud", "none"]
    done = subprocess.run(words, env=world._env(), capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert b"the binding 'm' would answer itself for ever" in done.stderr
    assert b"Traceback" not in done.stderr
