"""Which releases are begun, ended for a newer one, tried again, or left alone; and that models do not wait for each other."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.fakes.devices import Shelf, quick_folder, started, try_out_here

from toprope_edge.choosing import thread_options
from toprope_edge.life import State
from toprope_edge.trial import Probation
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine, find_engines
from toprope_shared.errors import NotFoundError, ProbeError
from toprope_shared.inference import Reason
from toprope_shared.manifest import Needs, parse
from toprope_shared.messages import DesiredRelease
from toprope_shared.probe import ProbeRequest, ProbeResult
from toprope_shared.trying import Choice, Shadow

LONG = Probation(seconds=600.0)
ROOT = Path(__file__).parents[2]


class Renamed:
    """A real engine under another name, as a second engine on the device."""

    def __init__(self, inner: Engine, name: str, version: str = "1.0") -> None:
        self._inner = inner
        self.name, self.format, self.version = name, inner.format, version
        self.open = inner.open


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


@pytest.fixture
def shelf(folder: Path) -> Shelf:
    return Shelf(folder / "shelf")


def other_engine(version: str = "1.0") -> dict[str, Engine]:
    found, _ = find_engines(["onnxruntime"])
    return {"other": Renamed(found["onnxruntime"], "other", version)}


def try_out_other(request: ProbeRequest) -> ProbeResult:
    """Try the engine `other` out as what it is."""
    result = try_out_here(msgspec.structs.replace(request, engine="onnxruntime"))
    return msgspec.structs.replace(result, engine=request.engine)


def only_for(shelf: Shelf, release: DesiredRelease, engine: str) -> DesiredRelease:
    """Return the release as one whose only variant runs on one engine."""
    manifest = parse(shelf.blobs.read(release.manifest_sha256))
    variants = tuple(msgspec.structs.replace(one, needs=Needs(engines=(engine,))) for one in manifest.variants)
    return shelf.named(msgspec.structs.replace(manifest, variants=variants))


async def rest() -> None:
    """Let everything that is ready run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_signed_retry_lets_a_refused_release_be_tried_again_once(folder: Path, shelf: Shelf) -> None:
    release = shelf.release("1.0.0", 1)
    refuse = True

    def try_out(request: ProbeRequest) -> ProbeResult:
        if refuse:
            raise ProbeError("the device was out of its mind")
        return try_out_here(request)

    async with started(folder, shelf, try_out=try_out) as device:
        for retry in (0, 1):
            device.follow(msgspec.structs.replace(release, retry=retry))
            await device.tells("1.0.0 DISCARDED", retry + 1)
            device.follow(msgspec.structs.replace(release, retry=retry))
            await rest()
            assert device.told().count("1.0.0 OFFERED") == retry + 1
        refuse = False
        device.follow(msgspec.structs.replace(release, retry=2))
        await device.reaches("1.0.0 COMMITTED")
        device.follow(msgspec.structs.replace(release, retry=3))
        await rest()
        assert device.told().count("1.0.0 OFFERED") == 3  # what is committed is not begun again


async def test_a_retry_does_not_lift_the_floor(folder: Path, shelf: Shelf) -> None:
    old = shelf.release("1.0.0", 1)
    async with started(folder, shelf) as device:
        device.follow(shelf.release("1.1.0", 2))
        await device.reaches("1.1.0 COMMITTED")
        device.follow(msgspec.structs.replace(old, retry=5))
        await device.reaches("1.0.0 DISCARDED")
        assert "below this device's floor 2" in device.reports()[-1].text
        assert device.journal.floor("double") == 2


async def test_what_no_engine_opened_is_tried_again_when_the_engines_are_others(folder: Path, shelf: Shelf) -> None:
    release = only_for(shelf, shelf.release("1.0.0", 1), "other")
    async with started(folder, shelf) as device:
        device.follow(release)
        await device.reaches("1.0.0 DISCARDED")
        assert device.reports()[-1].code == "runtime_missing"
        device.follow(release)
        await rest()
        assert device.told().count("1.0.0 OFFERED") == 1
    async with started(folder, shelf, engines=other_engine(), try_out=try_out_other) as device:
        device.follow(release)
        await device.reaches("1.0.0 COMMITTED")
        assert await device.ask() == 6.0


async def test_what_the_try_out_refused_stays_refused_on_other_engines(folder: Path, shelf: Shelf) -> None:
    release = shelf.release("1.0.0", 1, wrong_golden=True)
    async with started(folder, shelf) as device:
        device.follow(release)
        await device.reaches("1.0.0 DISCARDED")
    async with started(folder, shelf, engines=other_engine()) as device:
        device.follow(release)
        await rest()
        assert device.told().count("1.0.0 OFFERED") == 1


async def test_a_choice_for_engines_that_are_gone_is_made_again(folder: Path, shelf: Shelf) -> None:
    release = shelf.release("1.0.0", 1)
    async with started(folder, shelf) as device:
        device.follow(release, paused=True)
        await device.reaches("1.0.0 ARMED")
    tried: list[str] = []

    def try_out(request: ProbeRequest) -> ProbeResult:
        tried.append(request.engine)
        return try_out_other(request)

    async with started(folder, shelf, engines=other_engine(), try_out=try_out) as device:
        assert device.state() == "1.0.0 FETCHING"
        device.follow(release)
        await device.reaches("1.0.0 COMMITTED")
    assert tried == ["other"]


async def test_a_model_whose_engine_is_gone_is_installed_again_for_one_that_is_here(folder: Path, shelf: Shelf) -> None:
    release = shelf.release("1.0.0", 1)
    async with started(folder, shelf) as device:
        device.follow(release)
        await device.reaches("1.0.0 COMMITTED")
    async with started(folder, shelf, engines=other_engine(), try_out=try_out_other) as device:
        device.follow(release)
        await device.reaches("1.0.0 COMMITTED")
        slot = device.journal.slot("double")
        assert slot is not None
        assert slot.engine == "other"
        assert await device.ask() == 6.0


async def test_a_newer_release_ends_a_fetch_at_once(folder: Path, shelf: Shelf) -> None:
    stuck, newer = shelf.release("1.0.0", 1), shelf.release("1.1.0", 2, factor=5.0)
    async with started(folder, shelf) as device:
        file = parse(shelf.blobs.read(stuck.manifest_sha256)).variants[0].artifact.sha256
        device.fetcher.holds[file] = asyncio.Event()
        device.follow(stuck)
        await device.fetcher.held.wait()
        device.follow(newer)
        await device.reaches("1.1.0 COMMITTED")
        assert "1.0.0 SUPERSEDED" in device.told()


async def test_a_newer_release_ends_a_probation_at_once_and_what_was_proved_answers_in_between(
    folder: Path, shelf: Shelf
) -> None:
    first, second, third = (shelf.release(f"1.{n}.0", n + 1, factor=2.0 + n) for n in range(3))
    async with started(folder, shelf) as device:
        device.follow(first)
        await device.reaches("1.0.0 COMMITTED")
    async with started(folder, shelf, probation=LONG) as device:
        device.follow(second)
        await device.reaches("1.1.0 PROBATION")
        assert await device.ask() == 9.0
        device.follow(third, paused=True)
        await device.reaches("1.2.0 ARMED")
        assert await device.ask() == 6.0
        slot = device.journal.slot("double")
        assert slot is not None
        assert slot.manifest_sha256 == first.manifest_sha256
        assert device.runtime.standby("double") is None


async def test_a_first_release_is_watched_to_its_end_before_a_newer_one_begins(folder: Path, shelf: Shelf) -> None:
    async with started(folder, shelf, probation=Probation(calls=3, seconds=600.0)) as device:
        device.follow(shelf.release("1.0.0", 1))
        await device.reaches("1.0.0 PROBATION")
        device.follow(shelf.release("1.1.0", 2, factor=5.0))
        await rest()
        assert device.state() == "1.0.0 PROBATION"
        for _ in range(3):
            assert await device.ask() == 6.0
        await device.reaches("1.1.0 PROBATION")
        assert "1.0.0 COMMITTED" in device.told()


async def test_a_probation_and_a_paused_and_a_waiting_model_block_nobody(folder: Path, shelf: Shelf) -> None:
    releases = {name: shelf.release("1.0.0", 1, model=name, factor=float(n)) for n, name in enumerate("abc", 1)}
    async with started(folder, shelf, probation=LONG) as device:
        device.fetcher.holds[releases["a"].manifest_sha256] = asyncio.Event()
        device.follow(*releases.values())
        await device.reaches("1.0.0 PROBATION", "b")
        await device.reaches("1.0.0 PROBATION", "c")
        assert device.state("a") == "1.0.0 PRECHECK"
        device.fetcher.holds[releases["a"].manifest_sha256].set()
        await device.reaches("1.0.0 PROBATION", "a")


async def test_one_models_commit_leaves_anothers_half_fetched_files_alone(folder: Path, shelf: Shelf) -> None:
    waits, comes = shelf.release("1.0.0", 1, model="a"), shelf.release("1.0.0", 1, model="b", factor=3.0)
    async with started(folder, shelf) as device:
        file = parse(shelf.blobs.read(waits.manifest_sha256)).variants[0].artifact.sha256
        device.fetcher.holds[file] = asyncio.Event()
        device.follow(waits)
        await device.fetcher.held.wait()
        before = set(device.fetcher.fetched)
        device.follow(waits, comes)
        await device.reaches("1.0.0 COMMITTED", "b")
        assert all(device.blobs.has(digest) for digest in before)


async def test_a_commit_drops_what_no_release_needs_and_keeps_what_somebody_else_does(folder: Path, shelf: Shelf) -> None:
    kept: list[str] = []
    async with started(folder, shelf, kept=lambda: kept) as device:
        kept.append(device.blobs.put(b"the rollout's document"))
        useless = device.blobs.put(b"nobody's")
        device.follow(shelf.release("1.0.0", 1))
        await device.reaches("1.0.0 COMMITTED")
        assert (device.blobs.has(kept[0]), device.blobs.has(useless)) == (True, False)


async def test_a_delta_whose_base_another_models_commit_dropped_is_replaced_by_the_whole_file(
    folder: Path, shelf: Shelf
) -> None:
    earlier = shelf.release("0.9.0", 1, model="a", factor=9.0)
    base = parse(shelf.blobs.read(earlier.manifest_sha256))
    wanted = shelf.release("1.0.0", 2, model="a", earlier=base)
    variant = parse(shelf.blobs.read(wanted.manifest_sha256)).variants[0]
    async with started(folder, shelf) as device:
        device.blobs.put(shelf.blobs.read(base.variants[0].artifact.sha256))  # of an update that was given up
        delta = variant.deltas[0].artifact.sha256
        device.fetcher.holds[delta] = asyncio.Event()
        other = shelf.release("1.0.0", 1, model="b", factor=3.0)
        device.follow(wanted)
        await device.fetcher.held.wait()
        device.follow(wanted, other)
        await device.reaches("1.0.0 COMMITTED", "b")
        assert not device.blobs.has(base.variants[0].artifact.sha256)
        device.fetcher.holds.pop(delta).set()
        await device.reaches("1.0.0 COMMITTED", "a")


async def test_what_nobody_foresaw_ends_neither_other_updates_nor_the_runner(folder: Path, shelf: Shelf) -> None:
    bad, good = shelf.release("1.0.0", 1, model="a"), shelf.release("1.0.0", 1, model="b", factor=3.0)
    async with started(folder, shelf, retry_s=0.0) as device:
        device.fetcher.fails[bad.manifest_sha256] = RuntimeError("can't start new thread")
        device.follow(bad, good)
        await device.reaches("1.0.0 DISCARDED", "a")
        await device.reaches("1.0.0 COMMITTED", "b")
        (report,) = [one for one in device.reports() if one.state == "DISCARDED"]
        assert (report.code, "can't start new thread" in report.text) == ("unforeseen", True)
        assert await device.ask(model="b") == 9.0


async def test_a_file_that_the_disk_does_not_give_keeps_no_other_model_from_answering(folder: Path, shelf: Shelf) -> None:
    ones = [shelf.release("1.0.0", 1, model=name, factor=float(n)) for n, name in enumerate("ab", 1)]
    async with started(folder, shelf) as device:
        device.follow(*ones)
        for name in "ab":
            await device.reaches("1.0.0 COMMITTED", name)
        damaged = parse(device.blobs.read(ones[0].manifest_sha256)).variants[0].artifact.sha256
    file = folder / "blobs" / damaged
    file.unlink()
    file.mkdir()  # reading it is an error of the system's, as on a broken disk
    async with started(folder, shelf) as device:
        assert "BROKEN" in [one.state for one in device.reports()]
        assert await device.ask(model="b") == 6.0


async def test_a_first_release_that_is_quarantined_on_probation_can_not_be_loaded_again(folder: Path, shelf: Shelf) -> None:
    async with started(folder, shelf, probation=LONG) as device:
        device.follow(shelf.release("1.0.0", 1))
        await device.reaches("1.0.0 PROBATION")
        manifest = device.runtime.manifest("double")
        assert manifest is not None
        await rest()
        device.runtime.set_unavailable(manifest, Reason.LOCAL_ERROR, "it is quarantined")
        await device.reaches("1.0.0 ROLLED_BACK")
        await rest()
        with pytest.raises(NotFoundError):
            await device.runtime.load("double")


async def test_a_model_that_the_rollout_names_no_more_stays_where_it_is(folder: Path, shelf: Shelf) -> None:
    release = shelf.release("1.0.0", 1)
    async with started(folder, shelf) as device:
        file = parse(shelf.blobs.read(release.manifest_sha256)).variants[0].artifact.sha256
        device.fetcher.holds[file] = asyncio.Event()
        device.follow(release)
        await device.fetcher.held.wait()
        device.follow()
        await rest()
        device.fetcher.holds[file].set()
        await rest()
        assert device.state() == "1.0.0 FETCHING"
        device.follow(release)
        await device.reaches("1.0.0 COMMITTED")


async def test_every_admissible_way_is_measured_and_the_choice_kept_with_all_figures(folder: Path, shelf: Shelf) -> None:
    found, _ = find_engines(["onnxruntime"])
    engines: dict[str, Engine] = {**found, **other_engine()}

    def try_out(request: ProbeRequest) -> ProbeResult:
        if request.engine == "other":
            raise ProbeError("it died of SIGSEGV")
        result = try_out_here(request)
        return msgspec.structs.replace(result, latency_us=100.0 / request.threads)

    async with started(folder, shelf, engines=engines, threads=(1, 2), try_out=try_out) as device:
        device.follow(shelf.release("1.0.0", 1))
        await device.reaches("1.0.0 COMMITTED")
        update = device.journal.update("double")
        assert update is not None
        choice = update.choice
        assert choice is not None
        found_ways = [(one.engine, one.threads, one.latency_us, one.refused) for one in choice.tried]
        assert found_ways == [
            ("onnxruntime", 1, 100.0, ""),
            ("onnxruntime", 2, 50.0, ""),
            ("other", 1, 0.0, "it died of SIGSEGV"),
        ]
        assert choice.best.threads == 2
        slot = device.journal.slot("double")
        assert slot is not None
        assert slot.threads == 2
        told = next(report for report in device.reports() if report.state == "PROBED")
        assert msgspec.convert(told.details, Choice) == choice


async def test_when_nothing_passes_every_reason_is_reported(folder: Path, shelf: Shelf) -> None:
    async with started(folder, shelf) as device:
        device.follow(shelf.release("1.0.0", 1, broken=True))
        await device.reaches("1.0.0 DISCARDED")
        (tried,) = device.reports()[-1].details["tried"]
        assert tried["engine"] == "onnxruntime"
        assert tried["refused"] in device.reports()[-1].text


def test_threads_are_measured_unless_the_setting_names_a_number() -> None:
    assert thread_options(3) == (3,)
    assert thread_options(0)[0] == 1
    assert thread_options(0)[-1] == len(os.sched_getaffinity(0))


CHILD = """
import asyncio, sys
from pathlib import Path
import msgspec
from tests.fakes.devices import Shelf, started
from toprope_edge.trial import Probation
from toprope_shared.messages import DesiredRelease
from toprope_shared.trying import Shadow

async def main():
    folder, release = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=DesiredRelease)
    async with started(folder, Shelf(folder / "shelf"), probation=Probation(seconds=600.0)) as device:
        device.follow(release, paused=sys.argv[3] == "ARMED")
        await device.reaches(f"{release.version} {sys.argv[3]}")
        print("there", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


KILLED = [State.PROBATION]  # the other rows of test_update_life once more, as processes
if os.environ.get("TOPROPE_FAULTS") == "all":
    KILLED += [State.SHADOW, State.ARMED]


@pytest.mark.parametrize("state", KILLED)
async def test_a_process_that_is_killed_for_good_is_gone_on_from(state: State, folder: Path, shelf: Shelf) -> None:
    release = shelf.release("1.0.0", 1)
    async with started(folder, shelf) as device:
        device.follow(release)
        await device.reaches("1.0.0 COMMITTED")
    newer = shelf.release("1.1.0", 2, factor=5.0)
    shadowed = msgspec.structs.replace(newer, shadow=Shadow(seconds=600.0)) if state is State.SHADOW else newer
    words = (str(folder), msgspec.json.encode(shadowed).decode(), str(state))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, *words, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"there\n"
    child.send_signal(signal.SIGKILL)
    await child.wait()
    async with started(folder, shelf) as device:
        assert device.state() == f"1.1.0 {state}"
        assert await device.ask() == (15.0 if state is State.PROBATION else 6.0)
        device.follow(msgspec.structs.replace(newer, shadow=Shadow(seconds=0.01)))
        await device.reaches("1.1.0 COMMITTED")
        assert await device.ask() == 15.0


async def test_files_are_synced_then_their_folder_then_the_state_is_written(
    folder: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = parse(shelf.blobs.read(shelf.release("1.0.0", 1, padding=4096).manifest_sha256))
    release = shelf.release("1.1.0", 2, factor=5.0, padding=4096, earlier=base)
    made = parse(shelf.blobs.read(release.manifest_sha256)).variants[0].artifact.sha256
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(handle: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")  # noqa: PTH112 - of a handle
        fsync(handle)

    def noting_replace(source: str, target: Path) -> None:
        events.append(f"named {Path(target).name}")
        replace(source, target)

    async with started(folder, shelf) as device:
        Blobs(device.blobs.folder).put(shelf.blobs.read(base.variants[0].artifact.sha256))
        monkeypatch.setattr(os, "fsync", noting_fsync)
        monkeypatch.setattr(os, "replace", noting_replace)
        device.journal._db.set_trace_callback(lambda words: events.append("written") if words == "COMMIT" else None)
        device.follow(release)
        await device.reaches("1.1.0 VERIFIED")
        named = events.index(f"named {made}")
        assert events[named - 1 : named + 2] == ["file", f"named {made}", "folder"]
        assert "written" in events[named + 2 :]


async def test_every_life_is_prechecked_anew(folder: Path, shelf: Shelf) -> None:
    release = shelf.release("1.0.0", 1, wrong_golden=True)
    async with started(folder, shelf) as device:
        device.follow(release)
        await device.reaches("1.0.0 DISCARDED")
        device.unsigned.add("1.0.0")  # withdrawn meanwhile
        device.follow(msgspec.structs.replace(release, retry=1))
        await device.tells("1.0.0 DISCARDED", 2)
        assert [one.code for one in device.reports() if one.state == "DISCARDED"] == ["probe_failed", "untrusted"]
