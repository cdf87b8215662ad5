"""Publishes a bundle: uploads its blobs, signs the release with the models keys, and asks for the rollout.

Where the keys are on several machines the next metadata is written down as a draft, signed there, and handed in. Revoking a
release is the same walk with another change. What is changed is always what the cloud has in force, verified in `cloud_trust`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import TargetFile, Targets

from toprope_shared import draft_words, drafts
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.drafts import Document, Draft
from toprope_shared.errors import InputError
from toprope_shared.revocation import COUNTER, MANIFEST_PATH, REVOKED, withdraw
from toprope_shared.trust import MODELS
from toprope_training.bundle import Bundle, File
from toprope_training.cloud_api import CREATED, NOT_FOUND, OK, CloudApi, Progress, read_token
from toprope_training.cloud_trust import CloudTrust, own_signers, parse_targets, private_keys, read

LIFETIME = timedelta(days=365)
SILENT: Progress = lambda text, done, total: None  # noqa: E731


@dataclass(frozen=True, slots=True)
class Published:
    """What a publication did."""

    uploaded: int
    signed: bool
    metadata_version: int
    channel: str | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A draft that waits for signatures: the file, what it says, and what is missing."""

    file: Path
    uploaded: int
    words: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Submitted:
    """What the cloud took in: the version of its models metadata, and the releases that are new."""

    metadata_version: int
    releases: tuple[str, ...]
    channel: str | None


@dataclass(frozen=True, slots=True)
class Operator:
    """Who publishes: the cloud, and what the operator has to sign and verify with.

    Attributes:
        cloud: the cloud's address.
        keys: the folder with `operator.token` and, where this machine signs, `models.pem`.
        root: the root metadata that the operator keeps; may be missing.
        uris: models keys beyond those in the folder: files, or URIs of a KMS or HSM.
        timeout: seconds of silence after which the cloud counts as away.
        clock: what dates the signature.
    """

    cloud: str
    keys: Path
    root: Path
    uris: Sequence[str] = ()
    timeout: float = 30.0
    clock: Clock = field(default_factory=SystemClock)

    def api(self) -> PublishApi:
        """Return the cloud's doors.

        Raises:
            InputError: there is no operator's token.
        """
        return PublishApi(self.cloud, read_token(self.keys), self.timeout)

    def private(self) -> list[str]:
        """Return the models keys that are at hand."""
        return [*private_keys(self.keys), *self.uris]


class PublishApi(CloudApi):
    """The cloud's doors that a publisher needs."""

    def has_blob(self, digest: str) -> bool:
        """Say whether the cloud holds a blob."""
        return self.ask("HEAD", f"/api/blobs/{digest}", (OK, NOT_FOUND)).status == OK

    def put_blob(self, file: File) -> None:
        """Upload one blob."""
        with file.path.open("rb") as body:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(file.path.stat().st_size)}
            self.ask("PUT", f"/api/blobs/{file.digest}", (OK, CREATED), body=body, headers=headers)

    def metadata(self, name: str) -> bytes | None:
        """Return a TUF metadata file; None when there is none of this name."""
        answer = self.ask("GET", f"/trust/{name}.json", (OK, NOT_FOUND))
        return answer.data if answer.status == OK else None

    def releases(self) -> list[dict[str, Any]]:
        """Return what the cloud lists: model, version, release_counter and revoked of each release, oldest first."""
        try:
            found: list[dict[str, Any]] = msgspec.json.decode(self.ask("GET", "/api/releases", (OK,)).data)["releases"]
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise InputError(f"{self.url} is not a cloud of toprope: {error}") from error
        return found

    def post_release(self, metadata: bytes) -> None:
        """Hand in the next version of the models metadata."""
        self.send("/api/releases", metadata)

    def roll_out(self, channel: str, model: str, version: str) -> None:
        """Ask for a release on a channel."""
        self.send(f"/api/rollouts/{channel}", {"model": model, "version": version})


def publish(folder: Path, operator: Operator, *, channel: str | None, progress: Progress = SILENT) -> Published:
    """Upload, sign and roll out a bundle; what the cloud has already is not done again.

    Args:
        folder: the bundle directory.
        operator: the cloud, keys and anchor.
        channel: where to roll out; None leaves the release without a rollout.
        progress: told what is done, how far and of how much.

    Raises:
        InputError: the bundle, a key or a flag is wrong, more keys must sign than are here, or the cloud refused.
        TrustError: the cloud's metadata is not signed by us.
        LinkError: the cloud is away.
    """
    bundle = Bundle.open(folder)
    private = operator.private()
    if not private:
        raise InputError(
            f"there is no models key {operator.keys / MODELS}.pem; make keys with `toprope keys init`, name --keys or --key, "
            "or let other machines sign with --prepare FILE"
        )
    api = operator.api()
    uploaded = _upload(api, bundle, progress)
    progress("Signing the release", 0, 0)
    trust = read(api, operator.root, private)
    version, signed = trust.models.signed.version, False
    if add(trust.models.signed, bundle):
        draft = _draft(trust, operator.clock, {bundle.manifest.path: bundle.manifest_bytes.decode()})
        version, signed = _hand_in(api, sign_here(draft, trust, private)), True
    if channel is not None:
        progress(f"Rolling out on {channel}", 0, 0)
        api.roll_out(channel, bundle.manifest.model, bundle.manifest.version)
    return Published(uploaded, signed, version, channel)


def prepare(folder: Path, operator: Operator, file: Path, *, progress: Progress = SILENT) -> Prepared:
    """Upload a bundle and write the draft of the metadata that releases it; keys that are here sign it at once.

    Raises:
        InputError: as `publish`; the draft exists; or the release is signed already.
        TrustError: the cloud's metadata is not signed by us.
        LinkError: the cloud is away.
    """
    _must_be_new(file)
    bundle = Bundle.open(folder)
    api, private = operator.api(), operator.private()
    uploaded = _upload(api, bundle, progress)
    trust = _anchored(api, operator, private)
    if not add(trust.models.signed, bundle):
        raise InputError(
            f"{bundle.manifest.model} {bundle.manifest.version} is signed already; there is nothing to prepare"
        )
    draft = _draft(trust, operator.clock, {bundle.manifest.path: bundle.manifest_bytes.decode()})
    return _written(draft, trust, private, file, uploaded)


def revoke(
    model: str, version: str, reason: str, operator: Operator, *, and_older: bool = False, file: Path | None = None
) -> Submitted | Prepared:
    """Withdraw a release: sign that with the models keys here, or write the draft that says it to `file`.

    Args:
        model, version: the release.
        reason: one line that devices report and people read.
        operator: the cloud, keys and anchor.
        and_older: withdraw every release of the model with a lower counter too.
        file: where to write a draft; None signs here and hands it in.

    Raises:
        InputError: there is no such release, it is revoked, or more keys must sign than are here.
        TrustError: the cloud's metadata is not signed by us.
        LinkError: the cloud is away.
    """
    if file is not None:
        _must_be_new(file)
    api, private = operator.api(), operator.private()
    trust = _anchored(api, operator, private)
    target = withdraw(trust.models.signed.targets, model, version, reason, and_older=and_older)
    trust.models.signed.targets[target.path] = target
    draft = _draft(trust, operator.clock, {})
    if file is not None:
        return _written(draft, trust, private, file, 0)
    return Submitted(_hand_in(api, sign_here(draft, trust, private)), (), None)


def submit(file: Path, operator: Operator, *, channel: str | None) -> Submitted:
    """Hand a signed draft of the models metadata in, and roll out what it adds.

    Raises:
        InputError: signatures are missing, the draft is not of the models role, or the cloud refused it.
        LinkError: the cloud is away.
    """
    draft = Draft.read(file)
    document = draft.document(MODELS)
    if document is None or len(draft.documents) > 1:
        raise InputError(
            f"{file} is not a draft of a release; a rotation is taken in on the cloud's machine: toprope keys submit"
        )
    wanting = drafts.missing(draft)
    if wanting:
        raise InputError(f"{'; '.join(wanting)}. Sign it with: toprope keys sign {file} --key KEY")
    new, old = (drafts.parse(text, MODELS).signed.targets for text in (document.metadata, document.before))
    added = [match for path in new if path not in old and (match := MANIFEST_PATH.fullmatch(path))]
    api = operator.api()
    version = _hand_in(api, draft)
    for match in added if channel is not None else ():
        api.roll_out(str(channel), match[1], match[2])
    return Submitted(version, tuple(f"{match[1]} {match[2]}" for match in added), channel if added else None)


def signed_releases(metadata: bytes) -> dict[str, str]:
    """Return the manifest paths in models metadata and their SHA-256; not verified here."""
    targets = parse_targets(metadata, MODELS).signed.targets
    return {path: target.hashes["sha256"] for path, target in targets.items()}


def add(models: Targets, bundle: Bundle) -> bool:
    """Add a bundle's release to the models metadata; False when it stands there already.

    Raises:
        InputError: another release of this name is signed, or this one was revoked.
    """
    manifest = bundle.manifest
    target = TargetFile.from_data(manifest.path, bundle.manifest_bytes, ["sha256"])
    target.unrecognized_fields["custom"] = {COUNTER: manifest.release_counter}
    held = models.targets.get(manifest.path)
    if held is None:
        models.targets[manifest.path] = target
        return True
    if (held.hashes, held.length) != (target.hashes, target.length):
        raise InputError(
            f"{manifest.model} {manifest.version} is signed already with other contents, and releases are immutable; "
            "train again with a higher --version"
        )
    if REVOKED in (held.custom or {}):
        raise InputError(
            f"{manifest.model} {manifest.version} was revoked: {held.custom[REVOKED]}; train again with a higher --version"
        )
    return False


def sign_here(draft: Draft, trust: CloudTrust, private: list[str]) -> Draft:
    """Sign a draft with the keys at hand.

    Raises:
        InputError: they are not enough.
    """
    signed = _sign(draft, trust, private)
    wanting = drafts.missing(signed)
    if wanting:
        raise InputError(f"{'; '.join(wanting)}. Nothing was handed in; let the others sign with --prepare FILE")
    return signed


def _sign(draft: Draft, trust: CloudTrust, private: list[str]) -> Draft:
    own = {signer.public_key.keyid: signer for signer in own_signers(trust, private)}
    return drafts.sign(draft, lambda _, key: own.get(key.keyid))[0]


def _written(draft: Draft, trust: CloudTrust, private: list[str], file: Path, uploaded: int) -> Prepared:
    signed = _sign(draft, trust, private)
    signed.write(file)
    return Prepared(file, uploaded, signed.words, drafts.missing(signed))


def _draft(trust: CloudTrust, clock: Clock, manifests: dict[str, str]) -> Draft:
    """Return the unsigned next version of `trust.models`, whose targets were changed; the version in force stands beside it."""
    before = trust.before
    models = trust.models
    models.signed.version += 1
    models.signed.expires = datetime.fromtimestamp(int(clock.now()), UTC) + LIFETIME
    models.signatures.clear()
    document = Document(MODELS, drafts.text(models), before.decode())
    roots = tuple(root.decode() for root in trust.roots)
    draft = Draft(1, (), roots, trust.targets.decode(), (document,), manifests)
    return msgspec.structs.replace(draft, words=draft_words.describe(draft, {MODELS}, clock))


def _hand_in(api: PublishApi, draft: Draft) -> int:
    document = draft.documents[0]
    api.post_release(document.metadata.encode())
    return int(drafts.parse(document.metadata, MODELS).signed.version)


def _anchored(api: PublishApi, operator: Operator, private: list[str]) -> CloudTrust:
    if not private and not operator.root.exists():
        raise InputError(
            f"there is neither a models key in {operator.keys} nor root metadata at {operator.root} to hold the cloud's "
            "metadata against; name --root or --keys"
        )
    return read(api, operator.root, private)


def _must_be_new(file: Path) -> None:
    if file.exists():
        raise InputError(f"{file} exists and may hold signatures; name another file or move it away")


def _upload(api: PublishApi, bundle: Bundle, progress: Progress) -> int:
    files = {file.digest: file for file in bundle.files()}
    progress("Asking what the cloud holds", 0, 0)
    missing = [file for file in files.values() if not api.has_blob(file.digest)]
    for number, file in enumerate(missing):
        progress("Uploading the files", number, len(missing))
        api.put_blob(file)
    if missing:
        progress("Uploading the files", len(missing), len(missing))
    return len(missing)
