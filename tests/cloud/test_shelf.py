"""Which release answers for which name, what is begun and what is ended: rows over states, nothing is opened."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from tests.fakes.releases import tiny_release

from toprope_cloud.served import Choice, Served
from toprope_cloud.shelf import Shelf
from toprope_cloud.version_policy import parse_policy
from toprope_shared.blobs import Blobs
from toprope_shared.engines import find_engines
from toprope_shared.inference import ModelState
from toprope_shared.manifest import Manifest

STAGES = {"-": None, "S": ModelState.START, "L": ModelState.LOADING, "A": ModelState.AVAILABLE, "X": ModelState.END}


@dataclass(frozen=True)
class Row:
    """A shelf, and what becomes of it when it settles.

    Attributes:
        policy: which versions are served.
        before: the stages of the releases 1, 2, ...; X failed.
        after: the same once it has settled; E has ended well.
        names: who answers for what; None stands as "".
        aims: what each label aims at.
        stood: what it stood for before.
        stopped: whether an operator has unloaded the model.
    """

    policy: str
    before: str
    after: str
    names: dict[str, int]
    aims: dict[str, str] = field(default_factory=dict)
    stood: dict[str, int] = field(default_factory=dict)
    stopped: bool = False


ROWS = {
    "what is wanted begins": Row("latest:2", "---", "-SS", {"": 3, "2": 2, "3": 3}),
    "the newest that answers has no name": Row("latest:2", "-AL", "-AL", {"": 2, "2": 2, "3": 3}),
    "the old stays until the new answers": Row("latest:1", "AL", "AL", {"": 1, "1": 1, "2": 2}),
    "then it goes": Row("latest:1", "AA", "EA", {"": 2, "2": 2}),
    "one that failed does not count": Row("latest:1", "AX", "AX", {"": 1, "1": 1, "2": 2}),
    "where all have failed they say why": Row("latest:1", "XX", "XX", {"": 2, "1": 1, "2": 2}),
    "what was only begun is as if it had never been": Row("latest:1", "SA", "-A", {"": 2, "2": 2}),
    "what is being opened ends": Row("latest:1", "LA", "EA", {"": 2, "2": 2}),
    "a label keeps what policy would end": Row("latest:1", "AA", "AA", {"": 2, "1": 1, "2": 2, "old": 1}, {"old": "1"}),
    "a label begins what nobody else wants": Row("latest:1", "-A", "SA", {"": 2, "1": 1, "2": 2, "old": 1}, {"old": "1"}),
    "a label waits for what it aims at": Row(
        "all", "AL", "AL", {"": 1, "1": 1, "2": 2, "blue": 1}, {"blue": "2"}, stood={"blue": 1}
    ),
    "and moves to it": Row("all", "AA", "AA", {"": 2, "1": 1, "2": 2, "blue": 2}, {"blue": "1.2.0"}, stood={"blue": 1}),
    "it stays where its aim has failed": Row(
        "all", "AX", "AX", {"": 1, "1": 1, "2": 2, "blue": 1}, {"blue": "2"}, stood={"blue": 1}
    ),
    "a label of nothing that runs here is none": Row("all", "A", "A", {"": 1, "1": 1}, {"blue": "9"}, stood={"blue": 1}),
    "nobody answers for no name but by policy": Row("one", "AA", "AA", {"": 1, "1": 1, "2": 2, "blue": 2}, {"blue": "2"}),
    "an unloaded model keeps its names and no session": Row(
        "latest:1", "-A", "-E", {"": 2, "2": 2, "blue": 2}, {"blue": "2"}, stopped=True
    ),
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    blobs = Blobs(tmp_path_factory.mktemp("blobs"))
    return [tiny_release(blobs, version=f"1.{number}.0", counter=number) for number in (1, 2, 3)]


def made(row: Row, manifests: list[Manifest]) -> Shelf:
    """Return the shelf of a row, with the names that it had before."""
    policy = parse_policy(["1.1.0"] if row.policy == "one" else row.policy)
    shelf = Shelf("double", policy)
    engine = find_engines(["onnxruntime"])[0]["onnxruntime"]
    releases = [Served(manifest, (Choice(manifest.variants[0], engine),)) for manifest in manifests[: len(row.before)]]
    for one in releases:
        shelf.add(one)
    if row.stood:
        for one in releases:
            one.stage = ModelState.AVAILABLE
        shelf.take_in({}, {label: str(number) for label, number in row.stood.items()})
        shelf.settle()
    for one, stage in zip(releases, row.before, strict=True):
        one.stage, one.error = STAGES[stage], "INTERNAL" if stage == "X" else "OK"
    shelf.take_in({}, row.aims)
    shelf.stopped = row.stopped
    return shelf


def told(one: Served) -> str:
    if one.stage is ModelState.END:
        return "X" if one.failed else "E"
    return next(word for word, stage in STAGES.items() if stage is one.stage)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_shelf_settles(row: Row, manifests: list[Manifest]) -> None:
    shelf = made(row, manifests)
    shelf.settle()
    assert "".join(map(told, shelf.releases)) == row.after
    names = {name or "": one.manifest.release_counter for name, one in shelf.names.items()}
    assert {name: number for name, number in names.items() if "." not in name} == row.names
    assert all(names[f"1.{number}.0"] == number for number in names.values() if str(number) in names)


def test_what_was_revoked_has_no_name_and_is_told_of(manifests: list[Manifest]) -> None:
    shelf = made(Row("latest:2", "XA", "", {}), manifests)
    bad, good = shelf.releases
    shelf.take_in({bad.manifest.path: "it is wrong", good.manifest.path: "it is wrong too"}, {})
    shelf.settle()
    assert shelf.names == {}
    assert [(one.stage, one.error, one.reason) for one in shelf.listed()] == [
        (ModelState.END, "INTERNAL", ""),
        (ModelState.END, "OK", "it was revoked: it is wrong too"),
    ]
