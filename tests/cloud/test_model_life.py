"""Versions side by side, their labels and policies, and updates that no caller notices."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from tests.cloud.conftest import Installation
from tests.fakes.cloud_models import Served, Signed, serving
from tests.fakes.engines import Gate, GatedEngine
from tests.fakes.releases import tiny_release

from toprope_cloud.model_settings import ModelSettings
from toprope_cloud.models import CloudModels
from toprope_shared.blobs import Blobs
from toprope_shared.engines import find_engines
from toprope_shared.errors import NotFoundError, UnavailableError
from toprope_shared.inference import ModelState
from toprope_shared.manifest import Manifest
from toprope_shared.trust import MODELS

START, AVAILABLE, END = ModelState.START, ModelState.AVAILABLE, ModelState.END


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path)


def release(blobs: Blobs, number: int, **more: object) -> Manifest:
    """Version `1.<number>.0` with counter `number`, which multiplies by `number`."""
    return tiny_release(blobs, version=f"1.{number}.0", counter=number, factor=float(number), **more)  # type: ignore[arg-type]


def available(served: Served, *versions: str) -> bool:
    return {version for version, state in served.states().items() if state is AVAILABLE} == set(versions)


async def test_versions_answer_side_by_side_by_version_counter_and_label(blobs: Blobs) -> None:
    one, two = release(blobs, 1), release(blobs, 2)
    tables = {"double": ModelSettings(labels={"canary": 2})}
    async with serving(Signed(one, two, stable=one), blobs, tables=tables) as served:
        await served.until(lambda: available(served, "1.1.0", "1.2.0"))
        answers = {name: await served.ask(10.0, name) for name in (None, "1.1.0", "1", "2", "stable", "canary")}
        assert answers == {None: 20.0, "1.1.0": 10.0, "1": 10.0, "2": 20.0, "stable": 10.0, "canary": 20.0}
        assert served.status("1.1.0").labels == ("stable",)
        with pytest.raises(NotFoundError, match="there is no 'double' blue"):
            await served.ask(version="blue")


async def test_the_policy_says_which_versions_are_served(blobs: Blobs) -> None:
    releases = [release(blobs, number) for number in (1, 2, 3)]
    async with serving(Signed(*releases), blobs, tables={"*": ModelSettings(("1.1.0", 3))}) as served:
        await served.until(lambda: available(served, "1.1.0", "1.3.0"))
        assert set(served.states()) == {"1.1.0", "1.3.0"}
        with pytest.raises(NotFoundError, match=r"there is no 'double' 1\.2\.0"):
            await served.ask(version="1.2.0")


async def test_a_label_keeps_its_version_and_moves_when_the_next_one_answers(blobs: Blobs) -> None:
    one, two, three = (release(blobs, number) for number in (1, 2, 3))
    gate = Gate()
    engine = GatedEngine(find_engines(["onnxruntime"])[0]["onnxruntime"], gate)
    signed = Signed(one, three, stable=one)
    async with serving(signed, blobs, engines={"onnxruntime": engine}, tables={"*": ModelSettings("latest")}) as served:
        await served.until(lambda: available(served, "1.1.0", "1.3.0"))
        gate.shut()
        signed.manifests, signed.named = (one, two, three), {"stable": two}
        await served.refresh()
        await gate.arrival()  # the new one is being warmed
        assert served.states()["1.2.0"] is ModelState.LOADING
        assert served.status("1.1.0").labels == ("stable",)
        gate.open()
        await served.until(lambda: available(served, "1.2.0", "1.3.0"))
        assert await served.ask(10.0, "stable") == 20.0
        served.labels["double"] = {"stable": "3"}  # the operator overrules the channel
        await served.refresh()
        assert await served.ask(10.0, "stable") == 30.0
        await served.until(lambda: served.states()["1.2.0"] is END)
        del served.labels["double"]
        await served.refresh()
        assert await served.ask(10.0, "stable") == 30.0  # until the other is open again
        await served.until(lambda: served.status("1.2.0").labels == ("stable",))
        assert await served.ask(10.0, "stable") == 20.0


async def test_an_update_under_load_costs_no_request_and_gives_no_answer_of_another_version(blobs: Blobs) -> None:
    signed = Signed(release(blobs, 1))
    stop, counts = asyncio.Event(), {"answers": 0, "changes": 0}

    async def ask(served: Served, version: str | None) -> None:
        seen, x = 1.0, 0.0
        while not stop.is_set():
            x = (x + 1.0) % 50.0 + 1.0
            factor = await served.ask(x, version) / x
            counts["answers"] += 1
            if version is None:
                assert factor in (seen, seen + 1.0), "answers go from one version to the next and never back"
                counts["changes"] += factor != seen
                seen = factor
            else:
                assert factor == float(version)
            await asyncio.sleep(0)

    async with serving(signed, blobs, tables={"*": ModelSettings("all")}) as served:
        await served.until(lambda: available(served, "1.1.0"))
        async with asyncio.TaskGroup() as group:
            for version in (None, "1") * 8:
                group.create_task(ask(served, version))
            for number in (2, 3):
                signed.manifests = (*signed.manifests, release(blobs, number))
                await served.refresh()
                await served.until(lambda number=number: served.states().get(f"1.{number}.0") is AVAILABLE)  # type: ignore[misc]
            await served.until(lambda: counts["changes"] == 8 * 2)
            stop.set()
    assert counts["answers"] > 100


async def test_a_replaced_release_ends_its_calls_before_it_is_closed(blobs: Blobs) -> None:
    gate = Gate()
    engine = GatedEngine(find_engines(["onnxruntime"])[0]["onnxruntime"], gate)
    signed = Signed(release(blobs, 1))
    tables = {"*": ModelSettings("latest:1", batch="thread")}
    async with serving(signed, blobs, engines={"onnxruntime": engine}, tables=tables) as served:
        await served.until(lambda: available(served, "1.1.0"))
        gate.shut()
        call = asyncio.create_task(served.ask(5.0))
        await gate.arrival()
        gate.let_newcomers_pass()
        signed.manifests = (*signed.manifests, release(blobs, 2))
        await served.refresh()
        await served.until(lambda: served.states()["1.1.0"] is ModelState.UNLOADING)
        assert await served.ask(5.0) == 10.0
        assert gate.closed_sessions == 0
        gate.open()
        assert await call == 5.0
        await served.until(lambda: served.states()["1.1.0"] is END)
        assert served.status("1.1.0").error_code == "OK"
        assert gate.closed_sessions == 1


async def test_a_bad_release_blocks_nothing_and_says_why(blobs: Blobs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bad = release(blobs, 3, broken=True)
    other = tiny_release(blobs, "other", factor=7.0)
    async with serving(Signed(release(blobs, 1), release(blobs, 2), bad, other), blobs) as served:
        await served.until(lambda: available(served, "1.1.0", "1.2.0"))  # the newest two that run
        assert await served.ask(10.0) == 20.0
        assert await served.ask(10.0, model="other") == 70.0
        status = served.status("1.3.0")
        assert (status.state, status.error_code, status.ready) == (END, "INTERNAL", False)
        assert "[load_failed]" in status.reason
        with pytest.raises(UnavailableError, match=r"1\.3\.0 can't run here"):
            await served.ask(version="1.3.0")


async def test_a_bad_update_leaves_the_release_before_it_in_place(blobs: Blobs) -> None:
    signed = Signed(release(blobs, 1))
    async with serving(signed, blobs, tables={"*": ModelSettings("latest:1")}) as served:
        await served.until(lambda: available(served, "1.1.0"))
        bad = release(blobs, 2, wrong_golden=True)
        signed.manifests, signed.named = (*signed.manifests, bad), {"stable": bad}
        await served.refresh()
        await served.until(lambda: served.states().get("1.2.0") is END)
        assert "golden outputs do not hold" in served.status("1.2.0").reason
        assert served.states()["1.1.0"] is AVAILABLE
        assert await served.ask(10.0) == 10.0
        with pytest.raises(UnavailableError, match="golden outputs do not hold"):
            await served.ask(version="stable")


async def test_a_caller_gets_the_newest_that_runs_however_many_do_not(blobs: Blobs) -> None:
    bad = [release(blobs, number, broken=True) for number in range(2, 8)]
    async with serving(Signed(release(blobs, 1), *bad), blobs, tables={"*": ModelSettings("latest:1")}) as served:
        assert await served.ask(10.0) == 10.0


async def test_a_revoked_release_ends_at_once(blobs: Blobs) -> None:
    one, two = release(blobs, 1), release(blobs, 2)
    signed = Signed(one, two, stable=two)
    async with serving(signed, blobs) as served:
        await served.until(lambda: available(served, "1.1.0", "1.2.0"))
        signed.gone = {two.path: "it was trained on the wrong rows"}
        await served.refresh()
        assert await served.ask(10.0) == 10.0
        for name in ("1.2.0", "2", "stable"):
            with pytest.raises(NotFoundError):
                await served.ask(version=name)
        await served.until(lambda: served.states()["1.2.0"] is END)
        assert served.status("1.2.0").reason == "it was revoked: it was trained on the wrong rows"


async def test_a_model_is_unloaded_and_loaded_by_request(blobs: Blobs) -> None:
    bad = release(blobs, 2, broken=True)
    async with serving(Signed(release(blobs, 1), bad), blobs) as served:
        await served.until(lambda: available(served, "1.1.0") and served.states()["1.2.0"] is END)
        await served.models.unload("double")
        assert served.models.hot("double", None) is None
        with pytest.raises(UnavailableError, match="unloaded by request"):
            await served.ask()
        await served.until(lambda: served.states()["1.1.0"] is END)
        await served.refresh()  # which does not undo it
        assert served.states()["1.1.0"] is END
        blobs.path(bad.variants[0].artifact.sha256).write_bytes(b"still not a model")
        await served.models.load("double")
        assert await served.ask(10.0) == 10.0
        await served.until(lambda: served.status("1.2.0").error_code == "DATA_LOSS")  # it was tried once more
        with pytest.raises(NotFoundError):
            await served.models.load("nobody")


async def test_a_channel_of_the_real_registry_is_a_label_and_a_damaged_release_blocks_no_other(
    installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    registry = installation.registry
    one, two = installation.release("1.0.0", 1), installation.release("1.1.0", 2)
    registry.accept(installation.next_models(one, two))
    registry.roll_out("stable", one.model, "1.0.0")
    models = CloudModels(registry, registry.blobs, find_engines(["onnxruntime"])[0])
    digest = registry.metadata.targets(MODELS).targets[two.path].hashes["sha256"]
    registry.blobs.path(digest).write_bytes(b"{}")
    for _ in range(2):
        await models.refresh()
    await models.opened()
    try:
        assert [(s.manifest.version, s.state, s.labels) for s in models.models()] == [("1.0.0", AVAILABLE, ("stable",))]
    finally:
        models.close()
    (told,) = (record for record in caplog.records if record.name == "toprope_cloud.catalogue")
    assert "models/double/1.1.0/manifest.json can't be served" in told.getMessage()
