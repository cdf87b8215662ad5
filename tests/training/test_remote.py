"""Training at a real service with a stand-in trainer: what comes back, and what happens when something breaks."""

from __future__ import annotations

import asyncio
import io
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.fakes.clocks import ManualClock
from tests.fakes.job_service import TOKEN, open_gate, served
from tests.fakes.releases import tiny_release
from tests.journeys.conftest import write_bundle
from typer.testing import CliRunner

from toprope_cloud.job_rows import State
from toprope_cloud.jobs import Jobs, Limits
from toprope_shared.blobs import Blobs
from toprope_shared.errors import InputError, LinkError, TopropeError, TrustError
from toprope_shared.serving.app import listen, serve
from toprope_training import remote
from toprope_training.bundle import Bundle
from toprope_training.cli import train_app


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A service's home whose trainer makes a real bundle."""
    home = tmp_path / "home"
    (home / "sample").mkdir(parents=True)
    blobs = Blobs(tmp_path / "blobs")
    write_bundle(home / "sample", tiny_release(blobs), blobs)
    (home / "sample" / "saved_model").mkdir()
    (home / "sample" / "saved_model" / "deep.txt").write_text("for people")
    return home


async def trained(url: str, recipe: str, out: Path, **more: Any) -> Bundle:
    given = {"version": "1.0.0", "seed": 3, "token": TOKEN, "pause": lambda seconds: None, **more}
    return await asyncio.to_thread(remote.train, url, recipe, out, **given)


class Told:
    """Keeps what the client tells from its thread, and wakes the test when the trainer stands before the gate."""

    def __init__(self) -> None:
        self.all: list[tuple[str, int, int]] = []
        self._loop = asyncio.get_running_loop()
        self._gate = asyncio.Event()

    def __call__(self, text: str, done: int, total: int) -> None:
        self.all.append((text, done, total))
        if total == 2:
            self._loop.call_soon_threadsafe(self._gate.set)

    async def job(self, jobs: Jobs) -> str:
        """Wait for the gate and return the job that is there."""
        await self._gate.wait()
        return (await jobs.newest())[0].id


async def test_a_remote_bundle_stands_here_whole_and_its_progress_was_told(sample: Path, tmp_path: Path) -> None:
    told = Told()
    async with served(sample) as (url, jobs):
        training = asyncio.create_task(trained(url, "gated", tmp_path / "out", progress=told))
        job = await told.job(jobs)
        await open_gate(sample)
        bundle = await training
        assert (await jobs.get(job)).seed == 3
    assert bundle == Bundle.open(tmp_path / "out")
    assert bundle.manifest.model == "double"
    assert (tmp_path / "out" / "saved_model" / "deep.txt").read_text() == "for people"
    assert ("Training the model", 1, 2) in told.all
    text, done, total = told.all[-1]
    assert text == "Fetching the bundle"
    assert done == total > 0


@pytest.mark.parametrize(
    ("recipe", "kind", "sentence"),
    [
        ("refused", InputError, "the gates did not pass"),
        ("broken", TopropeError, "the step broke"),
        ("../x", InputError, "is not a recipe's name"),
        ("none.py", InputError, "recipe file .* can't be read"),
    ],
)
async def test_what_the_cloud_refuses_or_fails_at_is_told_and_leaves_nothing(
    sample: Path, tmp_path: Path, recipe: str, kind: type[TopropeError], sentence: str
) -> None:
    async with served(sample) as (url, _):
        with pytest.raises(kind, match=sentence) as caught:
            await trained(url, recipe, tmp_path / "out" / "bundle")
        assert type(caught.value) is kind
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


async def test_an_own_recipe_is_sent_where_the_service_takes_it(sample: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text("RECIPE = 'ä'")
    async with served(sample) as (url, _):
        with pytest.raises(InputError, match="runs no uploaded recipes"):
            await trained(url, str(recipe), tmp_path / "out")
    async with served(sample, Limits(uploads=True)) as (url, jobs):
        await trained(url, str(recipe), tmp_path / "out")
        job = (await jobs.newest())[0]
        assert (job.recipe, job.progress and job.progress.text) == ("mine", "RECIPE = 'ä'")


async def test_a_job_that_somebody_else_cancelled_is_told(sample: Path, tmp_path: Path) -> None:
    told = Told()
    async with served(sample) as (url, jobs):
        training = asyncio.create_task(trained(url, "gated", tmp_path / "out", progress=told))
        await jobs.cancel(await told.job(jobs))
        with pytest.raises(TopropeError, match="ended as cancelled"):
            await training


async def test_an_interrupt_cancels_the_job(sample: Path, tmp_path: Path) -> None:
    def interrupt(text: str, done: int, total: int) -> None:
        if total == 2:
            raise KeyboardInterrupt

    caught: list[BaseException] = []

    def press(url: str) -> None:  # not in a task: it would take the whole loop along
        try:
            remote.train(url, "gated", tmp_path / "out", version="1.0.0", seed=0, token=TOKEN, progress=interrupt)
        except KeyboardInterrupt as error:
            caught.append(error)

    async with served(sample) as (url, jobs):
        await asyncio.to_thread(press, url)
        assert len(caught) == 1
        assert (await jobs.newest())[0].state is State.CANCELLED
    assert not (tmp_path / "out").exists()


async def test_a_restart_of_the_service_ends_the_wait_with_its_reason(sample: Path, tmp_path: Path) -> None:
    again, told = threading.Event(), Told()
    async with served(sample) as (url, jobs):
        training = asyncio.create_task(
            trained(url, "gated", tmp_path / "out", progress=told, pause=lambda seconds: again.wait(30) and None)
        )
        await told.job(jobs)
    async with served(sample, port=int(url.rpartition(":")[2])):
        again.set()
        with pytest.raises(TopropeError, match="the service was stopped; ask for it again"):
            await training


class Stub:
    """A cloud that answers what a test says; it drops the first streams."""

    def __init__(self, *, drops: int = 0, tar: bytes = b"") -> None:
        self.drops = drops
        self.tar = tar

    async def run(self, ask: Callable[[str], Any]) -> Any:
        """Serve while `ask` is called with the address in a thread."""
        routes = [
            Route("/api/jobs", self._post, methods=["POST"]),
            Route("/api/jobs/{id}/events", self._events),
            Route("/api/jobs/{id}/bundle", self._bundle),
        ]
        sock = listen("127.0.0.1", 0)
        ready = asyncio.Event()
        task = asyncio.create_task(serve(Starlette(routes=routes), sock, ready=ready.set, grace_s=1))
        await ready.wait()
        try:
            return await asyncio.to_thread(ask, f"http://127.0.0.1:{sock.getsockname()[1]}")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _post(self, request: Request) -> Response:
        return JSONResponse({"id": "1", "state": "queued"}, 202)

    async def _events(self, request: Request) -> Response:
        self.drops -= 1
        if self.drops >= 0:
            return Response("event: progress\n", media_type="text/event-stream")
        return Response('event: end\ndata: {"id": "1", "state": "done", "new": 1}\n\n', media_type="text/event-stream")

    async def _bundle(self, request: Request) -> Response:
        return Response(self.tar, media_type="application/x-tar")


def plain(url: str, out: Path, **more: Any) -> Bundle:
    return remote.train(url, "fine", out, version="1.0.0", seed=0, token=TOKEN, **more)


def tar_of(*members: tarfile.TarInfo) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return file.getvalue()


def member(name: str, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(info, key, value)
    return info


async def test_a_stream_that_breaks_is_taken_up_again(tmp_path: Path) -> None:
    pauses: list[float] = []
    stub = Stub(drops=3, tar=tar_of(member("other")))
    with pytest.raises(InputError, match=r"not a whole bundle.*manifest\.json"):
        await stub.run(lambda url: plain(url, tmp_path / "out", pause=pauses.append))
    assert pauses == [1.0, 1.0, 1.0]


async def test_a_cloud_that_stays_away_is_given_up_and_the_job_named(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        stub = Stub(drops=1000)
        stub._events = lambda request: Response(status_code=502)  # type: ignore[method-assign,assignment,return-value]
        await stub.run(lambda url: plain(url, tmp_path / "out", clock=clock, pause=clock.advance))

    with pytest.raises(LinkError, match=r"has not told of the training job 1 for 120 s \(.*502.*may go on there"):
        await main()


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("/absolute/../../outside"),
        member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("hard", type=tarfile.LNKTYPE, linkname="manifest.json"),
        member("pipe", type=tarfile.FIFOTYPE),
        member("folder", type=tarfile.DIRTYPE),
    ],
    ids=lambda info: info.name,
)
def test_a_tar_with_anything_but_files_below_the_folder_is_refused(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    with pytest.raises(TrustError, match="something that is no bundle"):
        asyncio.run(Stub(tar=tar_of(bad)).run(lambda url: plain(url, tmp_path / "deep" / "out")))
    assert [path for path in tmp_path.rglob("*") if path.name != "deep"] == []


async def test_a_bundle_larger_than_any_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_BUNDLE_BYTES", 1000)
    with pytest.raises(TrustError, match="more than 1000 bytes"):
        await Stub(tar=tar_of(member("large", size=1001))).run(lambda url: plain(url, tmp_path / "out"))


@pytest.mark.parametrize("tar", [b"", b"no tar at all" * 100, tar_of(member("a", size=5000))[:2000]])
async def test_a_tar_that_is_cut_or_none_is_told(tmp_path: Path, tar: bytes) -> None:
    with pytest.raises(LinkError, match="did not come whole"):
        await Stub(tar=tar).run(lambda url: plain(url, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


async def test_a_cloud_that_is_no_cloud_is_told(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(LinkError, match="can't be reached"):
        await asyncio.to_thread(plain, f"http://127.0.0.1:{port}", tmp_path / "out")
    with pytest.raises(InputError, match="is not an address"):
        await asyncio.to_thread(plain, "http://", tmp_path / "out")


async def test_the_command_trains_at_a_cloud_and_shows_the_bundle(sample: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    words = ["fine", "--out", str(tmp_path / "out"), "--keys", str(keys), "--quiet", "--remote"]
    async with served(sample) as (url, _):
        refused = await asyncio.to_thread(CliRunner().invoke, train_app, [*words, url])
        assert "no operator token" in str(refused.exception)
        keys.mkdir()
        (keys / "operator.token").write_text(TOKEN + "\n")
        done = await asyncio.to_thread(CliRunner().invoke, train_app, [*words, url])
        assert done.exit_code == 0, done.output
        assert "double 1.0.0" in done.stdout
        refused = await asyncio.to_thread(CliRunner().invoke, train_app, [*words, url, "--data", "x.csv"])
        assert "--data, --tensorboard and --base name files of this machine" in str(refused.exception)
