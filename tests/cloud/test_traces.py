"""One trace shows the caller, the device, the way to the cloud and the cloud; spans go to a collector over real HTTP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3
from tests.fakes.clouds import closed_port
from tests.fakes.collector import Collector, Seen, collecting
from tests.fakes.guarded import guarded
from tests.fakes.served import served
from tests.shared.serving.conftest import make_shelf

from toprope_cloud.settings import CloudSettings
from toprope_edge.breaker import Breaker
from toprope_edge.cloud_client import CloudClient
from toprope_edge.settings import EdgeSettings
from toprope_shared.clock import SystemClock
from toprope_shared.inference import InferenceRequest, InferenceResponse
from toprope_shared.serving.backend import Backend, Passing
from toprope_shared.serving.tracing import Tracing
from toprope_shared.settings import load

SERVER, CLIENT, ERROR = 2, 3, 2
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
V2 = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}


class Above(Passing):
    """A device that holds no model: everything is asked of the cloud."""

    def __init__(self, inner: Backend, url: str, tracing: Tracing | None, headers: dict[str, str]) -> None:
        super().__init__(inner)
        self._way = (url, tracing, headers)

    def hot(self, model: str, version: str | None) -> None:
        return None

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        url, tracing, headers = self._way
        async with CloudClient(url, Breaker(SystemClock()), headers=headers, tracing=tracing) as client:
            return await client.infer(request)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@contextmanager
def tracing(collector: Collector, service: str) -> Iterator[Tracing]:
    opened = Tracing.open(collector.url, service)
    try:
        yield opened
    finally:
        opened.close()


def ask(address: str, **headers: str) -> urllib3.BaseHTTPResponse:
    return urllib3.request("POST", f"http://{address}/v2/models/affine/infer", json=V2, headers=headers, retries=False)


def only(spans: list[Seen], **wanted: object) -> Seen:
    (found,) = (span for span in spans if all(getattr(span, name) == value for name, value in wanted.items()))
    return found


def test_one_trace_shows_caller_device_way_and_cloud(tmp_path: Path, collector: Collector) -> None:
    with tracing(collector, "the-cloud") as above, tracing(collector, "the-edge") as below:
        with guarded(tmp_path, tracing=above, auth="on") as cloud:
            device = Above(cloud.shelf, cloud.url, below, cloud.device("cam"))
            with served(device, tracing=below) as address:
                answer = ask(address, traceparent=f"00-{TRACE}-{CALLER}-01")
        assert answer.status == 200
    edge = only(collector.spans, service="the-edge", kind=SERVER)
    way = only(collector.spans, service="the-edge", kind=CLIENT)
    top = only(collector.spans, service="the-cloud")
    assert {span.trace for span in (edge, way, top)} == {TRACE}
    assert (edge.parent, way.parent, top.parent) == (CALLER, edge.span, way.span)
    assert answer.headers["traceparent"].split("-")[1:3] == [TRACE, edge.span]
    assert (top.attributes["toprope.caller"], top.attributes["toprope.model"]) == ("device:cam", "affine")
    assert way.attributes["toprope.reason"] == "forced"
    assert {span.attributes["http.response.status_code"] for span in (edge, way, top)} == {200}


def test_a_cloud_that_is_away_is_an_error_in_the_trace(tmp_path: Path, collector: Collector) -> None:
    with tracing(collector, "the-edge") as below:
        device = Above(make_shelf(), closed_port(), below, {})
        with served(device, tracing=below) as address:
            said = ask(address)
        assert said.status == 503, said.data
    way = only(collector.spans, kind=CLIENT)
    assert (way.status, way.attributes["toprope.cloud_reason"]) == (ERROR, "offline")
    edge = only(collector.spans, kind=SERVER)
    assert (edge.status, edge.attributes["http.response.status_code"]) == (ERROR, 503)


def test_a_caller_who_wants_no_trace_gets_none(tmp_path: Path, collector: Collector) -> None:
    with tracing(collector, "the-cloud") as above, guarded(tmp_path, tracing=above) as cloud:
        address = cloud.url.removeprefix("http://")
        assert ask(address, traceparent=f"00-{TRACE}-{CALLER}-00").status == 200
        assert ask(address, traceparent="00-nonsense").status == 200
    assert only(collector.spans).trace != TRACE  # a new one for what could not be read, none for what said no


def test_a_collector_that_is_away_harms_no_answer(tmp_path: Path) -> None:
    opened = Tracing.open(f"{closed_port()}/v1/traces", "the-cloud")
    with guarded(tmp_path, tracing=opened) as cloud:
        assert ask(cloud.url.removeprefix("http://")).status == 200
    opened.close()


@pytest.mark.parametrize(
    ("variables", "traced"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "otel"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, "otel"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "TOPROPE_CLOUD_TRACES": "http://b", "TOPROPE_EDGE_TRACES": "http://b"},
         "http://b"),
    ],
)  # fmt: skip
def test_opentelemetrys_own_variables_name_a_collector(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], traced: str
) -> None:
    monkeypatch.setenv("TOPROPE_HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load(CloudSettings, "cloud", {}).traces == traced
    assert load(EdgeSettings, "edge", {"device": "cam"}).traces == traced


def test_opentelemetrys_variables_say_where_to_and_who(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, collector: Collector
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.removesuffix("/v1/traces"))
    monkeypatch.setenv("OTEL_SERVICE_NAME", "site-7")
    opened = Tracing.open("otel", "toprope-cloud")
    opened.begin("infer", {}).end(200)
    opened.close()
    assert only(collector.spans).service == "site-7"


def test_nothing_of_it_is_imported_where_nothing_is_traced() -> None:
    code = (
        "import sys, toprope_cloud.service, toprope_edge.agent\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk') or name == 'requests'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_traces_and_everything_else_end_with_the_loop(collector: Collector) -> None:
    async def live() -> None:
        opened = Tracing.open(collector.url, "the-edge")
        for _ in range(10):
            opened.begin("infer", {}).end(500)
        await asyncio.to_thread(opened.close)

    asyncio.run(live())
    assert [span.status for span in collector.spans] == [ERROR] * 10
