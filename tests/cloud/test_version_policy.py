"""Which versions a policy chooses, what a label may be, who makes room: rows, without models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.fakes.releases import tiny_release

from toprope_cloud.label_book import LabelBook
from toprope_cloud.labels import check_label, gather
from toprope_cloud.memory_budget import MIB, Claim, OverBudgetError, require, victims
from toprope_cloud.model_settings import ModelSettings, settings_of
from toprope_cloud.settings import CloudSettings
from toprope_cloud.version_policy import choose, parse_policy
from toprope_shared import settings
from toprope_shared.blobs import Blobs
from toprope_shared.errors import InputError
from toprope_shared.manifest import Manifest


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    blobs = Blobs(tmp_path_factory.mktemp("blobs"))
    return [tiny_release(blobs, version=f"1.{number}.0", counter=10 * number) for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ("latest", [30]),
        ("latest:1", [30]),
        ("latest:2", [20, 30]),
        ("latest:9", [10, 20, 30]),
        ("all", [10, 20, 30]),
        (("1.1.0",), [10]),
        ((30, "1.1.0"), [10, 30]),
        (("9.9.9",), []),
    ],
)
def test_a_policy_chooses(releases: list[Manifest], given: str | tuple[str | int, ...], chosen: list[int]) -> None:
    assert choose(parse_policy(given), [(one, one.release_counter) for one in releases]) == chosen


@pytest.mark.parametrize(
    "given", ["", "newest", "latest:0", "latest:-1", "latest:", "latest:²", "latest:9999999", "1.0.0", ()]
)
def test_what_is_no_policy_is_refused_with_what_to_write(given: str | tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"latest:[12]"):
        parse_policy(given)


@pytest.mark.parametrize("label", ["stable", "_", "a-b_C9", "x" * 64])
def test_a_label_is_a_word(label: str) -> None:
    assert check_label(label) == label


@pytest.mark.parametrize("label", ["", "1", "1.0.0", "a/b", "a:b", "stable ", "é", "x" * 65])
def test_what_may_be_taken_for_something_else_is_no_label(label: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 64"):
        check_label(label)


def test_the_operator_overrules_the_settings_and_they_the_channels() -> None:
    channels = {"stable": "1.0.0", "lab": "1.0.0", "beta": "1.0.0", "2": "1.0.0"}
    found = gather(channels, {"lab": 7, "beta": "1.1.0"}, {"beta": "1.2.0", "blue": "1.0.0"})
    assert found == {"stable": "1.0.0", "lab": "7", "beta": "1.2.0", "blue": "1.0.0"}


def test_what_an_operator_has_set_is_there_in_the_next_process(tmp_path: Path) -> None:
    book = LabelBook(tmp_path / "fleet.sqlite")
    book.put("digits", "blue", "1.0.0")
    book.put("digits", "blue", "1.1.0")
    book.put("digits", "green", "1.0.0")
    with pytest.raises(ValueError, match="the label '1'"):
        book.put("digits", "1", "1.0.0")
    other = LabelBook(tmp_path / "fleet.sqlite")
    assert other.all() == {"digits": {"blue": "1.1.0", "green": "1.0.0"}}
    assert other.remove("digits", "blue")
    assert not book.remove("digits", "blue")
    assert book.all() == {"digits": {"green": "1.0.0"}}
    book.close()
    other.close()


@dataclass(frozen=True)
class Row:
    """What is open, as `(who, MiB, when it was used)`, then what is asked and what comes of it."""

    claims: tuple[tuple[str, int, int], ...]
    needed: int
    limit: int
    gone: str
    fits: bool = True
    pinned: str = ""
    stay: str = ""


ROWS = [
    Row((("a", 4, 1), ("b", 4, 2)), needed=9, limit=0, gone=""),
    Row((("a", 4, 1), ("b", 4, 2)), needed=2, limit=10, gone=""),
    Row((("a", 4, 2), ("b", 4, 1)), needed=3, limit=10, gone="b"),
    Row((("a", 4, 1), ("b", 4, 2)), needed=7, limit=10, gone="ab"),
    Row((("a", 4, 1), ("b", 4, 2)), needed=3, limit=10, gone="b", pinned="a"),
    Row((("a", 4, 1), ("b", 4, 2)), needed=3, limit=10, gone="b", stay="a"),
    Row((("a", 4, 1), ("b", 4, 2)), needed=7, limit=10, gone="b", stay="a", fits=False),
    Row((("a", 8, 1), ("b", 4, 2)), needed=0, limit=10, gone="a"),
]


@pytest.mark.parametrize("row", ROWS)
def test_the_least_recently_used_makes_room(row: Row) -> None:
    claims = [
        Claim(who, cost * MIB, used, pinned=who in row.pinned, may_go=who not in row.stay) for who, cost, used in row.claims
    ]
    gone, fits = victims(row.needed * MIB, claims, row.limit * MIB)
    assert ("".join(gone), fits) == (row.gone, row.fits)


def test_what_can_never_fit_is_refused_with_what_to_do() -> None:
    claims = [Claim("a", 4 * MIB, 1, pinned=True), Claim("b", 4 * MIB, 2)]
    require("digits 1.0.0", 6 * MIB, claims, 10 * MIB)
    require("digits 1.0.0", 60 * MIB, claims, 0)
    with pytest.raises(
        OverBudgetError, match="needs 7 MiB and memory_budget is 10, and pinned models take 4 of it; raise it"
    ):
        require("digits 1.0.0", 7 * MIB, claims, 10 * MIB)


def test_a_model_without_a_table_of_its_own_has_that_of_every_model(tmp_path: Path) -> None:
    file = tmp_path / "toprope.toml"
    file.write_text(
        '[cloud]\nmemory_budget = 512\n[cloud.models."*"]\nversions = "all"\n'
        '[cloud.models.digits]\nversions = ["1.0.0", 7]\nlabels = { stable = "1.0.0", canary = 7 }\n'
        "window_ms = 2\nmax_rows = 8\n"
    )
    found = settings.load(CloudSettings, "cloud", {}, file=file)
    assert found.memory_budget == 512
    digits = settings_of(found.models, "digits")
    assert (digits.versions, digits.labels) == (("1.0.0", 7), {"stable": "1.0.0", "canary": 7})
    assert (digits.batching.window_s, digits.batching.max_rows) == (0.002, 8)
    assert settings_of(found.models, "other").versions == "all"
    assert settings_of({}, "other") == ModelSettings()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('versions = "newest"', "write latest:2, all, or a list"),
        ('labels = { "1" = "1.0.0" }', "the label '1' must be"),
        ("version = 1", "unknown field `version`"),
        ("max_rows = 0", "`int` >= 1"),
        ('batch = "loop"', "Invalid enum value 'loop'"),
    ],
)
def test_a_wrong_setting_of_a_model_is_refused_with_a_sentence(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "toprope.toml"
    file.write_text(f"[cloud.models.digits]\n{line}\n")
    with pytest.raises(InputError) as caught:
        settings.load(CloudSettings, "cloud", {}, file=file)
    assert says in str(caught.value)
