"""Releases whose two keys are on two machines: prepared here, signed there, handed in; over the cloud's real HTTP doors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tests.fakes.clocks import ManualClock
from tests.fakes.control_service import served
from tests.fakes.releases import tiny_release
from tests.fakes.tuf_client import TufClient
from tests.journeys.conftest import write_bundle
from tuf.api.metadata import TargetFile
from typer.testing import CliRunner

from toprope_cloud import ceremony, rotation
from toprope_cloud.draft_signing import Signing
from toprope_cloud.keys import Keyring
from toprope_cloud.keys_cli import keys_app
from toprope_cloud.layout import Layout
from toprope_cloud.metadata import MetadataRepository
from toprope_shared import drafts
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.drafts import Draft
from toprope_shared.errors import InputError, IntegrityError, TrustError
from toprope_shared.trust import MODELS
from toprope_training import publish
from toprope_training.cli import release_app
from toprope_training.publish import Operator

MANIFEST = "models/double/1.0.0/manifest.json"
CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Cloud:
    """A served installation with production keys; the trainer's and the approver's folders are elsewhere."""

    layout: Layout
    safe: Path
    url: str
    folder: Path

    def operator(self, holder: str = "trainer", **more: object) -> Operator:
        keys = self.safe / holder
        return replace(Operator(self.url, keys, self.safe / "trainer" / "1.root.json"), **more)  # type: ignore[arg-type]

    @property
    def watcher(self) -> Operator:
        """Who has the token and the root, and no models key."""
        return self.operator("watcher")

    def bundle(self, version: str = "1.0.0", counter: int = 1) -> Path:
        folder = self.folder / version
        blobs = Blobs(folder / "blobs")
        write_bundle(folder, tiny_release(blobs, version=version, counter=counter), blobs)
        return folder

    def prepare(self, version: str = "1.0.0", counter: int = 1) -> Path:
        """Return a draft of a release that nobody has signed."""
        file = self.folder / f"{version}.draft"
        publish.prepare(self.bundle(version, counter), self.watcher, file)
        return file

    def sign(self, file: Path, *holders: str) -> None:
        for holder in holders:
            key, root = self.safe / holder / "models.pem", self.safe / holder / "1.root.json"
            Signing.open(file, str(key), root, CLOCK).sign().draft.write(file, replace=True)

    def publish(self, version: str, counter: int) -> None:
        file = self.prepare(version, counter)
        self.sign(file, "trainer", "approver")
        publish.submit(file, self.watcher, channel="stable")

    def client(self) -> TufClient:
        return TufClient(self.folder / "device", self.layout.trust)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    layout = Layout(tmp_path / "home")
    ceremony.init_production(layout.keys, layout.trust, layout.offline)
    safe = tmp_path / "safe"
    shutil.move(layout.offline, safe)
    (safe / "watcher").mkdir()
    shutil.copy(layout.keys / "operator.token", safe / "watcher")
    with served(layout) as url:
        yield Cloud(layout, safe, url, tmp_path / "work")


def test_a_release_signed_on_two_machines_reaches_clients(cloud: Cloud) -> None:
    file = cloud.prepare()
    assert cloud.client().look_up(MANIFEST) == [None]
    cloud.sign(file, "trainer", "approver")
    done = publish.submit(file, cloud.watcher, channel="stable")
    assert (done.metadata_version, done.releases, done.channel) == (2, ("double 1.0.0",), "stable")
    assert None not in cloud.client().look_up(MANIFEST, "rollouts/stable.json")


def test_the_draft_says_what_the_release_is(cloud: Cloud) -> None:
    file = cloud.prepare()
    said = "\n".join(Draft.read(file).words)
    for word in (
        "version 1 to 2",
        "adds the release double 1.0.0",
        "release_counter 1",
        "sha256 ",
        "onnx-float32",
        "recipe",
    ):
        assert word in said
    signing = Signing.open(
        file, str(cloud.safe / "approver" / "models.pem"), cloud.safe / "approver" / "1.root.json", CLOCK
    )
    assert signing.words == Draft.read(file).words


def test_one_signature_of_two_is_not_handed_in(cloud: Cloud) -> None:
    file = cloud.prepare()
    for holders, said in (((), "0 of 2 signatures"), (("trainer",), "1 of 2 signatures")):
        cloud.sign(file, *holders)
        with pytest.raises(InputError, match=said):
            publish.submit(file, cloud.watcher, channel="stable")
    with pytest.raises(InputError, match="one key counts once"):
        cloud.sign(file, "trainer")
    assert cloud.client().look_up(MANIFEST) == [None]


def test_publishing_at_once_with_one_of_two_keys_says_how_to_go_on(cloud: Cloud) -> None:
    with pytest.raises(InputError, match=r"1 of 2 signatures.*--prepare"):
        publish.publish(cloud.bundle(), cloud.operator(), channel="stable")
    assert cloud.client().look_up(MANIFEST) == [None]


def test_both_keys_at_hand_publish_at_once(cloud: Cloud) -> None:
    operator = cloud.operator(uris=[str(cloud.safe / "approver" / "models.pem")])
    done = publish.publish(cloud.bundle(), operator, channel="stable")
    assert (done.signed, done.metadata_version) == (True, 2)
    assert None not in cloud.client().look_up(MANIFEST)
    again = publish.publish(cloud.bundle(), operator, channel=None)
    assert (again.signed, again.uploaded) == (False, 0)


def test_preparing_with_a_key_signs_with_it(cloud: Cloud) -> None:
    done = publish.prepare(cloud.bundle(), cloud.operator(), cloud.folder / "draft")
    assert "1 of 2 signatures" in done.missing[0]
    cloud.sign(done.file, "approver")
    assert publish.submit(done.file, cloud.watcher, channel=None).channel is None


def test_a_foreign_key_signs_neither_a_draft_nor_a_release(cloud: Cloud) -> None:
    foreign = cloud.safe / "foreign.pem"
    foreign.write_bytes(CryptoSigner.generate_ed25519().private_bytes)
    foreign.chmod(0o600)
    with pytest.raises(InputError, match="not one that is trusted"):
        Signing.open(cloud.prepare(), str(foreign), None, CLOCK)
    with pytest.raises(TrustError, match="right --keys"):
        publish.publish(cloud.bundle("1.1.0", 2), replace(cloud.watcher, uris=[str(foreign)]), channel=None)


def test_a_key_that_others_can_read_publishes_nothing(cloud: Cloud) -> None:
    (cloud.safe / "trainer" / "models.pem").chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        publish.publish(cloud.bundle(), cloud.operator(), channel="stable")


def test_a_missing_key_is_named(cloud: Cloud) -> None:
    with pytest.raises(InputError, match=r"no models key .*models\.pem.*--prepare"):
        publish.publish(cloud.bundle(), cloud.watcher, channel="stable")


def test_without_root_and_key_nothing_is_prepared(cloud: Cloud) -> None:
    with pytest.raises(InputError, match="neither a models key"):
        publish.prepare(cloud.bundle(), replace(cloud.watcher, root=cloud.folder / "none"), cloud.folder / "draft")


def test_a_draft_that_was_overtaken_is_refused_by_the_cloud(cloud: Cloud) -> None:
    first, second = cloud.prepare("1.0.0", 1), cloud.prepare("1.1.0", 2)
    for file in (first, second):
        cloud.sign(file, "trainer", "approver")
    publish.submit(first, cloud.watcher, channel=None)
    with pytest.raises(InputError, match="version 2 of the models metadata was sent and 3 comes next"):
        publish.submit(second, cloud.watcher, channel=None)


def test_an_expired_draft_is_neither_signed_nor_taken_in(cloud: Cloud) -> None:
    late = ManualClock(CLOCK.now() - 400 * 24 * 3600)
    file = cloud.folder / "draft"
    publish.prepare(cloud.bundle(), cloud.operator(clock=late), file)
    with pytest.raises(InputError, match="expired"):
        cloud.sign(file, "approver")
    draft = Draft.read(file)
    signed, done = drafts.sign(draft, Keyring(cloud.safe / "approver").signer)
    assert len(done) == 1
    signed.write(file, replace=True)
    with pytest.raises(InputError, match="expired; sign it again"):
        publish.submit(file, cloud.watcher, channel=None)


def test_a_draft_is_never_overwritten(cloud: Cloud) -> None:
    file = cloud.prepare()
    before = file.read_bytes()
    with pytest.raises(InputError, match="may hold signatures"):
        publish.prepare(cloud.bundle("1.1.0", 2), cloud.watcher, file)
    assert file.read_bytes() == before


def test_the_trainer_keeps_a_newer_root_than_the_approver(cloud: Cloud) -> None:
    ring = Keyring(cloud.layout.keys, cloud.safe / "root-1", cloud.safe / "root-2")
    repository = MetadataRepository(cloud.layout.trust, ring, clock=CLOCK)
    repository.apply(rotation.rotate(repository, ring, "snapshot", clock=CLOCK).draft)
    file = cloud.folder / "draft"
    publish.prepare(cloud.bundle(), cloud.operator(root=cloud.layout.trust / "2.root.json"), file)
    assert len(Draft.read(file).roots) == 2
    cloud.sign(file, "approver")
    assert publish.submit(file, cloud.watcher, channel=None).metadata_version == 2


def test_a_release_can_not_hide_behind_a_forged_past(cloud: Cloud) -> None:
    """The past in the draft names a release that was never signed, so that it looks old: with a root that is found out."""
    cloud.publish("1.0.0", 1)
    file = cloud.prepare("1.1.0", 2)
    draft = Draft.read(file)
    document = draft.documents[0]
    past, next_one = drafts.parse(document.before, MODELS), drafts.parse(document.metadata, MODELS)
    path = "models/double/6.6.6/manifest.json"
    for md in (past, next_one):
        target = TargetFile.from_data(path, b"bad", ["sha256"])
        target.unrecognized_fields["custom"] = {"release_counter": 666}
        md.signed.targets[path] = target
    forged = msgspec.structs.replace(document, before=drafts.text(past), metadata=drafts.text(next_one))
    msgspec.structs.replace(draft, documents=(forged,)).write(file, replace=True)
    with pytest.raises(TrustError, match="does not follow from your root"):
        cloud.sign(file, "approver")
    told = Signing.open(file, str(cloud.safe / "approver" / "models.pem"), None, CLOCK).words
    assert any("double 6.6.6" in line for line in told)


def test_words_that_lie_are_made_anew(cloud: Cloud) -> None:
    file = cloud.prepare()
    msgspec.structs.replace(Draft.read(file), words=("nothing of interest",)).write(file, replace=True)
    signing = Signing.open(file, str(cloud.safe / "approver" / "models.pem"), None, CLOCK)
    assert any("adds the release double 1.0.0" in line for line in signing.words)
    assert signing.sign().draft.words == signing.words


def test_a_manifest_that_is_missing_or_other_is_not_signed(cloud: Cloud) -> None:
    file = cloud.prepare()
    draft = Draft.read(file)
    msgspec.structs.replace(draft, manifests={}).write(file, replace=True)
    with pytest.raises(InputError, match="does not bring its manifest"):
        cloud.sign(file, "approver")
    changed = {path: text.replace("onnx-float32", "onnx-float16") for path, text in draft.manifests.items()}
    msgspec.structs.replace(draft, manifests=changed).write(file, replace=True)
    with pytest.raises((TrustError, IntegrityError), match="not what was signed"):
        cloud.sign(file, "approver")


def test_a_custom_field_without_words_is_not_signed(cloud: Cloud) -> None:
    file = cloud.prepare()
    draft = Draft.read(file)
    md = drafts.parse(draft.documents[0].metadata, MODELS)
    md.signed.targets[MANIFEST].unrecognized_fields["custom"]["backdoor"] = 1
    changed = msgspec.structs.replace(draft.documents[0], metadata=drafts.text(md))
    msgspec.structs.replace(draft, documents=(changed,)).write(file, replace=True)
    with pytest.raises(InputError, match=r"no words for.*backdoor"):
        cloud.sign(file, "approver")


def test_a_revocation_is_signed_by_both_and_reaches_clients(cloud: Cloud) -> None:
    cloud.publish("1.0.0", 1)
    cloud.publish("1.1.0", 2)
    with pytest.raises(InputError, match="1 of 2 signatures"):
        publish.revoke("double", "1.0.0", "it says seven", cloud.operator())
    file = cloud.folder / "revocation"
    publish.revoke("double", "1.0.0", "it says seven", cloud.watcher, file=file)
    assert "  revokes double 1.0.0: it says seven" in Draft.read(file).words
    cloud.sign(file, "approver", "trainer")
    done = publish.submit(file, cloud.watcher, channel="stable")
    assert (done.releases, done.channel) == ((), None)
    target = cloud.client().look_up(MANIFEST)[0]
    assert target is not None
    assert target.custom == {"release_counter": 1, "revoked": "it says seven"}
    with pytest.raises(InputError, match="was revoked: it says seven"):
        publish.prepare(cloud.bundle("1.0.0", 1), cloud.watcher, cloud.folder / "again")


@pytest.mark.parametrize(
    ("version", "reason", "said"), [("9.9.9", "bad", "no signed release"), ("1.0.0", "a\nb", "one line")]
)
def test_a_revocation_that_makes_no_sense_is_refused(cloud: Cloud, version: str, reason: str, said: str) -> None:
    cloud.publish("1.0.0", 1)
    with pytest.raises(InputError, match=said):
        publish.revoke("double", version, reason, cloud.watcher, file=cloud.folder / "draft")


def test_a_rotated_models_key_goes_on_publishing(cloud: Cloud) -> None:
    cloud.publish("1.0.0", 1)
    before = cloud.client().look_up(MANIFEST)
    ring = Keyring(cloud.layout.keys, *(cloud.safe / one for one in ("targets", "trainer", "approver")))
    repository = MetadataRepository(cloud.layout.trust, ring, clock=CLOCK)
    retire = next(
        keyid
        for keyid, key in rotation.trusted_keys(repository, MODELS).items()
        if Keyring(cloud.safe / "trainer").where(MODELS, key)
    )
    done = rotation.rotate(repository, ring, MODELS, clock=CLOCK, retire=retire)
    repository.apply(done.draft)
    rotation.retire(ring, done.draft)
    assert cloud.client().look_up(MANIFEST) == before
    operator = cloud.operator(uris=[str(cloud.safe / "approver" / "models.pem")])
    assert publish.publish(cloud.bundle("1.1.0", 2), operator, channel="stable").signed
    assert None not in cloud.client().look_up("models/double/1.1.0/manifest.json")


def test_the_commands_walk_from_one_machine_to_the_next(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPROPE_HOME", str(cloud.folder / "nobody"))
    run, file = CliRunner(), str(cloud.folder / "draft")
    trainer = ["--cloud", cloud.url, "--keys", str(cloud.safe / "trainer")]
    root = ["--root", str(cloud.safe / "trainer" / "1.root.json")]
    made = run.invoke(release_app, ["publish", str(cloud.bundle()), "--prepare", file, *trainer, *root])
    assert made.exit_code == 0, made.output
    assert "adds the release double 1.0.0" in made.stdout
    assert "1 of 2 signatures" in made.stdout
    assert isinstance(run.invoke(release_app, ["submit", file, *trainer]).exception, InputError)
    key = str(cloud.safe / "approver" / "models.pem")
    signed = run.invoke(
        keys_app, ["sign", file, "--key", key, "--root", str(cloud.safe / "approver" / "1.root.json")], input="y\n"
    )
    assert signed.exit_code == 0, signed.output
    taken = run.invoke(release_app, ["submit", file, *trainer])
    assert "rolls out double 1.0.0" in taken.stdout
    gone = str(cloud.folder / "revocation")
    words = ["revoke", "double", "1.0.0", "--reason", "it says seven", "--prepare", gone, *trainer, *root]
    assert "revokes double 1.0.0" in run.invoke(release_app, words).stdout
