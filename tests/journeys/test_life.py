"""A model's whole life with the real broker, engines and HTTP, and what is done to it on the way.

The invariant in each: the running release is the previous or the new one, and inference goes on.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from tests.journeys.conftest import TOPROPE, World

pytestmark = pytest.mark.timeout(240)
BIG = 24 << 20


def settled(world: World, name: str, version: str) -> None:
    world.until(lambda: world.running(name) == (version, "COMMITTED"), f"{name} to run {version}")


def answers(world: World, name: str, factor: float, origin: str = "edge") -> None:
    status, body, headers = world.ask(name, 3.0)
    assert status == 200, body
    assert body["outputs"][0]["data"] == [pytest.approx(3.0 * factor)]
    assert headers["Inference-Origin"] == origin


def test_a_release_reaches_a_device_and_the_next_one_replaces_it(world: World) -> None:
    world.device("dev-1")
    world.publish("1.0.0", 1, factor=2.0)
    settled(world, "dev-1", "1.0.0")
    answers(world, "dev-1", 2.0)
    world.publish("1.1.0", 2, factor=5.0)
    shown = world.command("rollout", "watch", "stable", "--url", f"http://127.0.0.1:{world.ports['cloud']}")
    assert "1 in sync, 0 moving, 0 failed" in shown
    settled(world, "dev-1", "1.1.0")
    answers(world, "dev-1", 5.0)


def test_an_agent_killed_in_mid_download_resumes_and_finishes(world: World) -> None:
    world.device("dev-1")
    world.publish("1.0.0", 1, factor=2.0)
    settled(world, "dev-1", "1.0.0")
    partial = world.home / "devices" / "dev-1" / "state" / "partial"
    world.publish("1.1.0", 2, factor=5.0, padding=BIG)
    world.until(lambda: any(file.stat().st_blocks for file in partial.glob("*.part")), "the download to begin")
    world.kill("dev-1")
    world.device("dev-1")
    answers(world, "dev-1", 2.0)
    settled(world, "dev-1", "1.1.0")
    answers(world, "dev-1", 5.0)


def test_a_device_that_holds_the_base_fetches_a_delta_and_not_the_file(world: World) -> None:
    world.device("dev-1")
    first = world.publish("1.0.0", 1, factor=2.0, padding=BIG)
    settled(world, "dev-1", "1.0.0")
    second = world.publish("1.1.0", 2, factor=5.0, padding=BIG, earlier=first)
    settled(world, "dev-1", "1.1.0")
    answers(world, "dev-1", 5.0)
    length = second.variants[0].deltas[0].artifact.length
    assert length < BIG / 100
    assert world.report("dev-1", "1.1.0", "FETCHING") == f"{length} bytes in 1 files, 1 of them deltas"
    assert "MiB by delta over pull" in (world.home / "dev-1.log").read_text()


def test_a_delta_that_makes_nothing_costs_one_fetch_of_the_whole_file(world: World) -> None:
    world.device("dev-1")
    first = world.publish("1.0.0", 1, factor=2.0, padding=1 << 16)
    settled(world, "dev-1", "1.0.0")
    world.publish("1.1.0", 2, factor=5.0, padding=1 << 16, earlier=first, bad_delta=True)
    settled(world, "dev-1", "1.1.0")
    answers(world, "dev-1", 5.0)


def test_a_killed_broker_stops_no_answer_and_updates_go_on_after_it_returns(world: World) -> None:
    world.device("dev-1")
    world.publish("1.0.0", 1, factor=2.0)
    settled(world, "dev-1", "1.0.0")
    world.kill("broker")
    answers(world, "dev-1", 2.0)
    world.publish("1.1.0", 2, factor=5.0)
    world.broker()
    settled(world, "dev-1", "1.1.0")
    answers(world, "dev-1", 5.0)


def test_a_corrupted_artifact_in_the_cloud_is_never_loaded(world: World) -> None:
    world.device("dev-1")
    world.publish("1.0.0", 1, factor=2.0)
    settled(world, "dev-1", "1.0.0")
    world.kill("broker")
    manifest = world.publish("1.1.0", 2, factor=5.0, padding=BIG)
    blob = world.home / "cloud" / "blobs" / manifest.variants[0].artifact.sha256
    good = blob.read_bytes()
    blob.write_bytes(good[:-1000] + bytes(byte ^ 1 for byte in good[-1000:]))
    world.broker()
    log = world.home / "dev-1.log"
    world.until(lambda: "not what was signed" in log.read_text(), "the device to refuse the chunk")
    answers(world, "dev-1", 2.0)
    assert world.running("dev-1")[0] == "1.0.0"
    blob.write_bytes(good)
    settled(world, "dev-1", "1.1.0")
    answers(world, "dev-1", 5.0)


def test_an_artifact_tampered_with_on_the_device_is_not_loaded_and_is_fetched_again(world: World) -> None:
    world.device("dev-1")
    manifest = world.publish("1.0.0", 1, factor=2.0)
    settled(world, "dev-1", "1.0.0")
    world.kill("dev-1", signal.SIGTERM)
    blob = world.home / "devices" / "dev-1" / "state" / "blobs" / manifest.variants[0].artifact.sha256
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(bytes(data))
    world.device("dev-1")
    answered = world.ask("dev-1", 3.0)
    assert answered[0] == 200
    assert answered[1]["outputs"][0]["data"] == [6.0]
    world.until(lambda: world.states("dev-1", "1.0.0").count("COMMITTED") == 2, "the release to be fetched again")
    answers(world, "dev-1", 2.0)


def test_a_release_whose_golden_outputs_do_not_hold_is_discarded(world: World) -> None:
    world.device("dev-1")
    world.publish("1.0.0", 1, factor=2.0)
    settled(world, "dev-1", "1.0.0")
    world.publish("1.1.0", 2, factor=5.0, wrong_golden=True)
    world.until(lambda: "DISCARDED" in world.states("dev-1", "1.1.0"), "the release to be discarded")
    answers(world, "dev-1", 2.0)
    assert "ACTIVATING" not in world.states("dev-1", "1.1.0")


def test_a_release_whose_first_live_calls_fail_is_rolled_back_and_no_request_fails(world: World) -> None:
    world.device("dev-1", "--probation-seconds", "50")
    world.publish("1.0.0", 1, factor=2.0)
    world.until(lambda: world.running("dev-1") == ("1.0.0", "PROBATION"), "probation")
    for _ in range(20):
        answers(world, "dev-1", 2.0)
    settled(world, "dev-1", "1.0.0")
    world.publish("1.1.0", 2, factor=5.0, brittle=True)
    world.until(lambda: world.running("dev-1")[1] == "PROBATION", "probation")
    for _ in range(5):
        status, body, _ = world.ask("dev-1", 1e6)
        assert status == 200, body
        assert body["outputs"][0]["data"] == [2e6]
    world.until(lambda: "ROLLED_BACK" in world.states("dev-1", "1.1.0"), "the roll back")
    answers(world, "dev-1", 2.0)


def test_with_the_cloud_away_local_answers_go_on_and_the_rest_is_a_503_with_both_reasons(world: World) -> None:
    world.device("dev-1")
    world.device("dev-2", "--models", "nothing")
    world.publish("1.0.0", 1, factor=2.0)
    settled(world, "dev-1", "1.0.0")
    world.until(lambda: world.ask("dev-2", 3.0)[0] == 200, "the cloud to answer for dev-2")
    answers(world, "dev-2", 2.0, origin="cloud")
    world.kill("cloud")
    answers(world, "dev-1", 2.0)
    status, body, headers = world.ask("dev-2", 3.0)
    assert (status, body["reasons"]) == (503, ["no_model", "offline"])
    assert int(headers["Retry-After"]) > 0


def test_a_release_signed_with_a_foreign_key_is_refused(world: World, tmp_path: Path) -> None:
    world.device("dev-1")
    world.publish("1.0.0", 1, factor=2.0)
    settled(world, "dev-1", "1.0.0")
    foreign = World(tmp_path / "foreign-home")
    (world.home / "keys" / "models.pem").write_bytes((foreign.home / "keys" / "models.pem").read_bytes())
    with pytest.raises(AssertionError, match="models"):
        world.publish("1.1.0", 2, factor=5.0)
    answers(world, "dev-1", 2.0)


def test_a_second_agent_on_the_same_state_is_refused_with_a_sentence(world: World) -> None:
    world.device("dev-1")
    words = [TOPROPE, "edge", "run", "--device", "dev-1", "--port", "0", "--cloud", "none"]
    done = subprocess.run(words, env=world._env(), capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert b"another agent runs on" in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_agent_killed_on_probation_watches_again_and_gives_up_after_three_attempts(world: World) -> None:
    world.device("dev-1")
    world.publish("1.0.0", 1, factor=2.0)
    settled(world, "dev-1", "1.0.0")
    world.kill("dev-1", signal.SIGTERM)
    world.device("dev-1", "--probation-seconds", "600")
    world.publish("1.1.0", 2, factor=5.0)
    world.until(lambda: world.running("dev-1") == ("1.1.0", "PROBATION"), "probation")
    for _ in range(3):
        world.kill("dev-1")
        world.device("dev-1", "--probation-seconds", "600")
    world.until(lambda: "ROLLED_BACK" in world.states("dev-1", "1.1.0"), "the roll back")
    answers(world, "dev-1", 2.0)
