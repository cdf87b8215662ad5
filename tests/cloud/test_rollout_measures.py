"""What an operator signs into a rollout besides the release, and what he sees of a device's choice."""

from __future__ import annotations

import msgspec
import pytest
from rich.console import Console
from tests.cloud.conftest import Installation

from toprope_cloud.rollouts_api import RolloutBody, _measures
from toprope_cloud.show import choice_tables
from toprope_shared.errors import InputError, NotFoundError
from toprope_shared.messages import DeviceState, Rollout, RunningModel, decode
from toprope_shared.trying import Choice, Limits, Shadow, Tried


def test_a_retry_is_a_signed_number_that_grows_and_leaves_the_rest_as_it_is(installation: Installation) -> None:
    registry = installation.registry
    manifest = installation.release("1.0.0", 1)
    registry.accept(installation.next_models(manifest))
    first = registry.roll_out("stable", manifest.model, "1.0.0", shadow=Shadow(calls=7), limits=Limits(latency=9.0))
    for number in (1, 2):
        found = registry.retry("stable", manifest.model)
        (release,) = found.releases
        assert (found.version, release.retry) == (first.version + number, number)
        assert msgspec.structs.replace(release, retry=0) == first.releases[0]
    signed = registry.rollout("stable")
    assert signed is not None
    assert decode(Rollout, signed[1]).releases[0].retry == 2


def test_a_retry_of_what_is_not_rolled_out_is_refused(installation: Installation) -> None:
    with pytest.raises(NotFoundError, match="no rollout of a model nothing"):
        installation.registry.retry("stable", "nothing")


def test_a_rollout_without_measures_is_as_short_as_before(installation: Installation) -> None:
    manifest = installation.release("1.0.0", 1)
    installation.registry.accept(installation.next_models(manifest))
    installation.registry.roll_out("stable", manifest.model, "1.0.0")
    signed = installation.registry.rollout("stable")
    assert signed is not None
    assert not {b"retry", b"shadow", b"limits"} & {word for word in signed[1].split(b'"') if word}


def test_measures_are_read_and_wrong_ones_refused_in_words() -> None:
    body = RolloutBody(model="m", version="1.0.0", shadow={"calls": 5}, limits={"disagreement": 0.2})
    assert _measures(body) == {"shadow": Shadow(calls=5), "limits": Limits(disagreement=0.2)}
    assert _measures(RolloutBody(model="m", version="1.0.0")) == {"shadow": None, "limits": None}
    with pytest.raises(InputError, match=r"do not fit.*disagreement"):
        _measures(RolloutBody(model="m", version="1.0.0", limits={"disagreement": 2}))


def test_a_devices_choice_is_a_table_with_the_chosen_marked_and_the_refused_explained() -> None:
    tried = (
        Tried("int8", "onnxruntime", 1, "onnxruntime/1.2", 80.25, 3 << 20, 12),
        Tried("int8", "onnxruntime", 2, "onnxruntime/1.2", 41.5, 4 << 20, 12),
        Tried("int8", "litert", 1, refused="it was killed by SIGSEGV [load]"),
    )
    choice = Choice("1.1.0", ("litert/2", "onnxruntime/1.2"), tried, 1)
    running = (RunningModel("m", "1.0.0", "int8", "", "", choice=choice), RunningModel("n", "", "", "", ""))
    state = decode(DeviceState, msgspec.json.encode(DeviceState("d", True, 1, models=running)))
    (table,) = choice_tables(msgspec.to_builtins(state)["models"])
    console = Console(width=160)
    with console.capture() as said:
        console.print(table)
    lines = said.get().splitlines()
    assert any("m 1.1.0: what was tried out on litert/2, onnxruntime/1.2" in line for line in lines)
    (chosen,) = (line for line in lines if "chosen" in line)
    assert [cell.strip() for cell in chosen.split("│")[1:-1]] == [
        "→",
        "int8",
        "onnxruntime",
        "2",
        "41.5",
        "4.0",
        "12",
        "chosen",
    ]
    assert any("refused: it was killed by SIGSEGV [load]" in line for line in lines)
