"""What an agent imports before its first answer: nothing that only the network, another engine or the command line needs."""

from __future__ import annotations

import re
import sys
import time

import pytest
from tests.fakes.agents import PATIENCE_S, Agent, install

SERVING = "Application startup complete"  # the HTTP server's line before the agent says that it is ready
BROUGHT_UP = "what was trusted before the start"  # the last that it says without a network
ELSEWHERE = ("tuf", "securesystemslib", "cryptography")  # in a process of its own
NEVER = (
    *ELSEWHERE,
    "aiohttp",
    "urllib3",
    "typer",
    "zstandard",
    "rich",
    "pydantic",
    "ai_edge_litert",
    "tflite_runtime",
    "toprope_cloud",
    "toprope_training",
)
_IMPORTED = re.compile(r"^import time:.*\| +(\w+)\S*$", re.MULTILINE)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What Python said of an agent's imports before it served and after, once everything was brought up."""
    home = tmp_path_factory.mktemp("start") / "home"
    install(home)
    with Agent(home, "--cloud", "http://127.0.0.1:9", before=(sys.executable, "-X", "importtime")) as agent:
        assert agent.answers(3.0) == 6.0
        end = time.monotonic() + PATIENCE_S
        while BROUGHT_UP not in agent.log.read_text() and time.monotonic() < end:
            time.sleep(0.05)
    before, served, after = agent.log.read_text().partition(SERVING)
    assert served
    assert BROUGHT_UP in after
    return before, after


def imported(text: str) -> set[str]:
    return set(_IMPORTED.findall(text))


def test_the_engine_of_the_model_on_disk_is_imported_before_it_serves(told: tuple[str, str]) -> None:
    assert {"onnxruntime", "numpy", "uvicorn", "toprope_edge"} <= imported(told[0])


@pytest.mark.parametrize("name", NEVER)
def test_what_an_agent_does_not_need_is_never_imported(name: str, told: tuple[str, str]) -> None:
    assert name not in imported(told[0]) | imported(told[1])
