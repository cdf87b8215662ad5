"""The report is one page that needs nothing else, says everything, and runs nobody's script."""

from __future__ import annotations

import io
import itertools
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console, RenderableType
from tests.fakes import reports
from tests.fakes.reports import Made
from typer.testing import CliRunner

from toprope_shared.errors import InputError
from toprope_training import pictures, report, show, svg
from toprope_training.bundle import Bundle
from toprope_training.cli import release_app
from toprope_training.measurements import Measurements

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = "<script>alert('1')</script>"
KINDS = ("classifier", "regression")


class Page(HTMLParser):
    """Reads a page: its tags with their attributes, its text, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(made: Made, *, bare: bool = False) -> str:
    return report.render(report.build(made.manifest, None if bare else made.measurements))


def printed(shown: RenderableType) -> str:
    """Return what a terminal of 100 columns shows."""
    screen = io.StringIO()
    Console(file=screen, width=100).print(shown)
    return screen.getvalue()


@pytest.fixture(scope="module")
def classifier() -> Made:
    return reports.classifier()


@pytest.fixture(scope="module")
def text(classifier: Made) -> str:
    """The page of a classifier's release."""
    return page_of(classifier)


def test_the_page_refers_to_nothing_outside_of_itself(text: str) -> None:
    page = Page(text)
    assert page.open == []
    assert not page.named("script")
    assert not page.named("link")
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "src"
            assert "href" not in name or value.startswith("#")
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_a_browser_is_told_to_fetch_and_run_nothing(text: str) -> None:
    policies = [meta["content"] for meta in Page(text).named("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_every_variant_gate_package_and_parameter_stands_in_it(classifier: Made, text: str) -> None:
    told, manifest = Page(text).text, classifier.manifest
    for variant in manifest.variants:
        assert variant.name in told
        assert f"{variant.artifact.length:,}" in told
        assert variant.artifact.sha256 in told
    for gate in manifest.gates:
        assert gate.name in told
        assert show.number(gate.limit) in told
        assert gate.advice in told
    provenance = manifest.provenance
    for name, version in provenance.packages.items():
        assert name in told
        assert version in told
    for name, value in provenance.parameters.items():
        assert f"parameter {name}" in told
        assert str(value) in told
    for value in (provenance.data_sha256, provenance.weights_sha256, provenance.source_revision, "2023-11-14 22:13:20"):
        assert value in told
    for word in (
        "slower than float32",
        "larger model",
        "certified",
        "heuristic",
        "grey values divided by 16",
        "any × 8 × 8 × 1",
    ):
        assert word in told


def test_failed_gates_stand_first_and_are_told_at_the_top(text: str) -> None:
    told = Page(text).text
    assert told.index("1 gate did not pass") < told.index("Variants")
    assert told.index("FAILED: use a simpler <b>layer</b>") < told.index("parity on litert", told.index("What was held"))


def test_names_and_labels_of_others_are_text_and_nothing_else() -> None:
    labels = (HOSTILE, "--><script>alert(2)</script>", "$x^2$ \x1b[31m\x00", '"onload="alert(3)', *"abcdef")
    made = reports.classifier(labels=labels)
    hostile = reports.replace(
        made.manifest,
        description=HOSTILE,
        metric=reports.replace(made.manifest.metric, name=HOSTILE),
        provenance=reports.replace(made.manifest.provenance, recipe=HOSTILE, packages={HOSTILE: HOSTILE}),
    )
    named = Measurements(9, tuple(reports.replace(one, engine=HOSTILE) for one in made.measurements.parity))
    for measured in (made.measurements, named):
        page = Page(report.render(report.build(hostile, measured)))
        assert page.open == []
        assert not page.named("script")
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
        assert HOSTILE in page.text


def test_the_same_release_gives_the_same_bytes(classifier: Made, text: str) -> None:
    assert page_of(classifier) == text
    code = (
        "import sys; from tests.fakes import reports; from toprope_training import report; made = reports.classifier();"
        "sys.stdout.write(report.render(report.build(made.manifest, made.measurements)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, cwd=root)
    assert done.stdout == text


@pytest.mark.parametrize("kind", KINDS)
def test_no_id_stands_twice_and_every_reference_has_its_target(kind: str) -> None:
    page = Page(page_of(getattr(reports, kind)()))
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    for _, attributes in page.tags:
        targets = re.findall(r"url\(#([^)]+)\)", " ".join(attributes.values()))
        targets += [attributes["href"][1:]] if "href" in attributes else []
        assert set(targets) <= set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_who_cannot_see_the_page_can_still_read_it(kind: str) -> None:
    page = Page(page_of(getattr(reports, kind)()))
    assert page.named("html")[0]["lang"] == "en"
    assert len(page.named("h1")) == 1
    assert page.named("svg")
    for attributes in page.named("svg"):
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 20
    assert all(attributes.get("scope") in {"col", "row"} for attributes in page.named("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if tag in {"h1", "h2", "h3"}]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_pictures_follow_the_page_into_the_dark(text: str) -> None:
    drawn = text[text.index("<svg") :]
    assert "var(--ink)" in drawn
    assert "var(--blue)" in drawn
    assert not re.search(r"#[0-9a-f]{6}\b", drawn.partition("</svg>")[0])
    for variable in svg.VARIABLES.values():
        assert text.count(f"--{variable}: #") == 2


def test_a_picture_of_its_own_is_whole_and_on_white(classifier: Made) -> None:
    for picture in pictures.draw(classifier.manifest, classifier.measurements).all():
        root = ElementTree.fromstring(picture.alone)  # noqa: S314 - our own
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root[0].attrib["fill"] == svg.PAPER
        assert "var(" not in picture.alone


def test_a_release_without_measurements_still_has_a_report(classifier: Made) -> None:
    page = Page(page_of(classifier, bare=True))
    assert len(page.named("svg")) == 1
    assert "has no measurements.json" in page.text
    assert "tau" in page.text


def test_what_an_imported_model_does_without_is_told_with_its_reason(classifier: Made) -> None:
    measured = reports.replace(classifier.measurements, left_out=("tflite-int8: no <data> to learn ranges from",))
    assert "no <data> to learn" in Page(report.render(report.build(classifier.manifest, measured))).text


def test_a_release_that_nobody_measured_still_has_a_report(classifier: Made) -> None:
    variants = tuple(reports.replace(variant, measured=None, calibration=None) for variant in classifier.manifest.variants)
    manifest = reports.replace(classifier.manifest, variants=variants, gates=(), labels=(), preprocessing=())
    page = Page(report.render(report.build(manifest, None)))
    assert not page.named("svg")
    assert "not measured" in page.text
    assert "no receipts of gates" in page.text


def test_a_regression_shows_its_errors_and_no_classes() -> None:
    told = Page(page_of(reports.regression())).text
    assert "errors on the holdout" in told
    assert "Confused classes" not in told
    assert "Calibration" not in told


@pytest.mark.parametrize(("count", "matrix"), [(2, True), (25, True), (26, False), (214, False)])
def test_many_classes_are_told_as_their_most_confused_pairs(count: int, matrix: bool) -> None:
    made = reports.classifier(labels=tuple(f"class {number}" for number in range(count)), names=("tflite-int8",))
    told = report.build(made.manifest, made.measurements)
    assert bool(told.pictures.confusions) is matrix
    assert bool(told.confused) is not matrix
    for table in told.confused:
        rows = [int(row.cells[2]) for row in table.rows]
        assert rows == sorted(rows, reverse=True)
        assert len(rows) == report.MOST_PAIRS
        assert table.rows[0].cells[0].startswith("class ")


@pytest.mark.parametrize(
    ("quantiles", "over"),
    [((0.0, 1.0, 2.0, 3.0, 200.0), False), ((0.0, 1.0, 2.0, 3.0, 201.0), True), ((0.0,) * 5, False), ((9.3e18,) * 5, True)],
)
def test_what_is_over_its_parity_limit_is_named(quantiles: tuple[float, ...], over: bool) -> None:
    made = reports.classifier(names=("tflite-float32",))
    one = reports.replace(made.measurements.parity[0], quantiles_ppm=quantiles)
    picture = pictures.draw(made.manifest, Measurements(9, (one,))).parity
    assert picture is not None
    assert (f"over the limit: {one.variant} on {one.engine}" in picture.alt) is over


def test_a_cascade_says_what_its_threshold_rests_on(classifier: Made) -> None:
    first, second, _ = pictures.draw(classifier.manifest, classifier.measurements).cascades
    assert "tau 0.500, certified on 449 rows, 12.5 % are sent" in first.alt
    assert "heuristic on 449 rows" in second.alt


def test_a_wheel_has_the_template() -> None:
    from hatchling.builders.wheel import WheelBuilder

    room = Path(__file__).parents[2] / "training"
    files = {file.distribution_path for file in WheelBuilder(str(room)).recurse_included_files()}
    assert f"toprope_training/{report.TEMPLATE}" in files


def test_the_terminal_shows_calibration_and_the_larger_model_in_100_columns(classifier: Made) -> None:
    lines = printed(show.release(classifier.manifest)).splitlines()
    assert all(len(line.rstrip()) <= 100 for line in lines)
    (teacher,) = [line for line in lines if line.startswith("teacher-tflite-dynamic-int8 ") and "larger model" in line]
    assert "551,000" in teacher
    (certified,) = [line for line in lines if line.startswith("tflite-float32 ")]
    assert "tau 0.834 certified" in certified
    assert any("tau 0.5 heuristic" in line for line in lines)


def test_brackets_in_an_advice_are_shown_as_they_are(classifier: Made) -> None:
    gate = reports.replace(classifier.manifest.gates[-1], advice="raise [limit] [/bold]")
    assert "raise [limit] [/bold]" in printed(show.receipts(reports.replace(classifier.manifest, gates=(gate,))))


def test_show_writes_the_report_beside_the_tables(tmp_path: Path, classifier: Made) -> None:
    folder = reports.bundle(tmp_path / "bundle", classifier)
    result = CliRunner().invoke(release_app, ["show", str(folder), "--pictures", str(tmp_path / "pictures")])
    assert result.exit_code == 0, result.output
    assert "tflite-dynamic-int8" in result.stdout
    assert f"The report is in {folder / 'report.html'}." in result.stdout
    assert len(Page((folder / "report.html").read_text("utf-8")).named("svg")) == 11
    assert {"variants.svg", "parity.svg", "cascade-0.svg"} <= {path.name for path in (tmp_path / "pictures").iterdir()}
    assert Bundle.open(folder).manifest.model == "digits"


def test_show_leaves_the_bundle_alone_when_asked_to(tmp_path: Path, classifier: Made) -> None:
    folder = reports.bundle(tmp_path / "bundle", classifier)
    before = sorted(folder.iterdir())
    result = CliRunner().invoke(release_app, ["show", str(folder), "--no-report"])
    assert result.exit_code == 0
    assert sorted(folder.iterdir()) == before
    assert "report" not in result.stdout


def test_a_report_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path, classifier: Made) -> None:
    folder = reports.bundle(tmp_path / "bundle", classifier)
    (folder / "report.html").mkdir()
    result = CliRunner().invoke(release_app, ["show", str(folder)])
    assert result.exit_code == 0
    assert "tflite-dynamic-int8" in result.stdout
    assert "The report could not be written" in result.stdout
    assert "--no-report" in result.stdout
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_pictures_that_cannot_be_written_are_refused(tmp_path: Path, classifier: Made) -> None:
    folder = reports.bundle(tmp_path / "bundle", classifier)
    (tmp_path / "file").touch()
    result = CliRunner().invoke(release_app, ["show", str(folder), "--no-report", "--pictures", str(tmp_path / "file")])
    assert isinstance(result.exception, InputError)
    assert "name another folder" in str(result.exception)


def test_damaged_measurements_are_refused_by_name(tmp_path: Path, classifier: Made) -> None:
    folder = reports.bundle(tmp_path / "bundle", classifier)
    (folder / "measurements.json").write_text("{")
    result = CliRunner().invoke(release_app, ["show", str(folder)])
    assert isinstance(result.exception, InputError)
    assert "measurements.json" in str(result.exception)
    assert "tflite-dynamic-int8" in result.stdout


def test_the_command_line_starts_without_what_draws() -> None:
    code = "import sys, toprope_training.cli; print(sorted({'matplotlib', 'jinja2', 'rich.table', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "matplotlib" not in done.stdout
    assert "jinja2" not in done.stdout


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_real_browser_shows_the_page(tmp_path: Path, text: str, width: int) -> None:
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(text, "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [shutil.which("chromium") or "", *flags, f"--window-size={width},2000", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert shot.stat().st_size > 10_000
