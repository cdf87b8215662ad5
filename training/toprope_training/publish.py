"""Publishes a bundle: uploads its blobs, signs the release with the models key, and asks for the rollout.

Nothing is signed on the cloud's word alone: the models metadata that it sends is held against the operator's own root, or
without one against the operator's own models key, before a release is added and signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError

from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import InputError, TrustError
from toprope_shared.trust import COUNTER, MODELS
from toprope_training.bundle import Bundle, File
from toprope_training.cloud_api import CREATED, NOT_FOUND, OK, CloudApi, Progress, read_token

LIFETIME = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Published:
    """What a publication did."""

    uploaded: int
    signed: bool
    metadata_version: int
    channel: str | None


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

    def post_release(self, metadata: bytes) -> None:
        """Hand in the next version of the models metadata."""
        self.send("/api/releases", metadata)

    def roll_out(self, channel: str, model: str, version: str) -> None:
        """Ask for a release on a channel."""
        self.send(f"/api/rollouts/{channel}", {"model": model, "version": version})


def publish(
    folder: Path,
    cloud: str,
    *,
    channel: str | None,
    keys: Path,
    root: Path,
    timeout: float = 30.0,
    progress: Progress = lambda text, done, total: None,
    clock: Clock | None = None,
) -> Published:
    """Upload, sign and roll out a bundle; what the cloud has already is not done again.

    Args:
        folder: the bundle directory.
        cloud: the cloud's address.
        channel: where to roll out; None leaves the release without a rollout.
        keys: the folder with `models.pem` and `operator.token`.
        root: the bootstrap root that the operator keeps; may be missing.
        timeout: seconds of silence after which the cloud counts as away.
        progress: told what is done, how far and of how much.
        clock: what dates the signature.

    Raises:
        InputError: the bundle, a key or a flag is wrong, or the cloud refused; the text says what it said.
        TrustError: the cloud's metadata is not signed by us.
        LinkError: the cloud is away.
    """
    bundle = Bundle.open(folder)
    own = _own_key(keys)
    api = PublishApi(cloud, read_token(keys), timeout)
    uploaded = _upload(api, bundle, progress)
    progress("Signing the release", 0, 0)
    models, key = _trusted(api, own, root)
    signed = _add(models, bundle)
    if signed:
        now = datetime.fromtimestamp(int((clock or SystemClock()).now()), UTC)
        api.post_release(_sign(models, _signer(keys, key), now))
    if channel is not None:
        progress(f"Rolling out on {channel}", 0, 0)
        api.roll_out(channel, bundle.manifest.model, bundle.manifest.version)
    return Published(uploaded, signed, models.signed.version, channel)


def signed_releases(metadata: bytes) -> dict[str, str]:
    """Return the manifest paths in models metadata and their SHA-256; not verified here."""
    targets = _parse(metadata, MODELS).signed.targets
    return {path: target.hashes["sha256"] for path, target in targets.items()}


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


def _add(models: Metadata[Targets], bundle: Bundle) -> bool:
    manifest = bundle.manifest
    target = TargetFile.from_data(manifest.path, bundle.manifest_bytes, ["sha256"])
    target.unrecognized_fields["custom"] = {COUNTER: manifest.release_counter}
    held = models.signed.targets.get(manifest.path)
    if held is None:
        models.signed.targets[manifest.path] = target
        return True
    if held != target:
        raise InputError(
            f"{manifest.model} {manifest.version} is signed already with other contents, and releases are immutable; "
            "train again with a higher --version"
        )
    return False


def _sign(models: Metadata[Targets], signer: Signer, now: datetime) -> bytes:
    models.signed.version += 1
    models.signed.expires = now + LIFETIME
    models.signatures.clear()
    models.sign(signer)
    return models.to_bytes()


def _trusted(api: PublishApi, own: Key, root: Path) -> tuple[Metadata[Targets], Key]:
    models = _fetched(api, MODELS)
    if not root.exists():
        try:
            own.verify_signature(models.signatures[own.keyid], models.signed_bytes)
        except (KeyError, UnverifiedSignatureError) as error:
            raise TrustError(
                "the cloud's models metadata is not signed with this models key; nothing was signed"
            ) from error
        return models, own
    targets = _fetched(api, Targets.type)
    try:
        trusted = _newest_root(api, root)
        trusted.verify_delegate(Targets.type, targets.signed_bytes, targets.signatures)
        targets.signed.verify_delegate(MODELS, models.signed_bytes, models.signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(f"the cloud's metadata does not follow from {root}: {error}; nothing was signed") from error
    return models, _authorized(targets.signed, own)


def _authorized(targets: Targets, own: Key) -> Key:
    delegations = targets.delegations
    role = (delegations.roles or {}).get(MODELS) if delegations else None
    for keyid in role.keyids if delegations and role else ():
        key = delegations.keys[keyid] if delegations else own
        if key.keyval == own.keyval:
            return key
    raise TrustError("this models key is not one that the cloud's targets role trusts; publish with the right --keys")


def _newest_root(api: PublishApi, path: Path) -> Root:
    try:
        newest = Metadata[Root].from_bytes(path.read_bytes()).signed
    except (OSError, DeserializationError) as error:
        raise InputError(f"the root metadata {path} can't be read: {error}") from error
    while (data := api.metadata(f"{newest.version + 1}.root")) is not None:
        try:
            after = Metadata[Root].from_bytes(data)
        except DeserializationError as error:
            raise TrustError(f"the cloud's root {newest.version + 1} is no metadata: {error}") from error
        newest.verify_delegate(Root.type, after.signed_bytes, after.signatures)
        after.signed.verify_delegate(Root.type, after.signed_bytes, after.signatures)
        if after.signed.version != newest.version + 1:
            raise TrustError(f"the cloud's root {newest.version + 1} says that it is {after.signed.version}")
        newest = after.signed
    return newest


def _fetched(api: PublishApi, role: str) -> Metadata[Targets]:
    data = api.metadata(role)
    if data is None:
        raise InputError(f"the cloud has no {role} metadata; make it with: toprope keys init")
    return _parse(data, role)


def _parse(data: bytes, role: str) -> Metadata[Targets]:
    try:
        found = Metadata[Targets].from_bytes(data)
    except DeserializationError as error:
        raise TrustError(f"the cloud's {role} metadata can't be read: {error}") from error
    if not isinstance(found.signed, Targets):
        raise TrustError(f"the cloud's {role} metadata is of another type: {found.signed.type}")
    return found


def _own_key(keys: Path) -> Key:
    path = keys / f"{MODELS}.pem"
    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), None)).public_key
    except FileNotFoundError as error:
        raise InputError(f"there is no models key {path}; make keys with `toprope keys init` or name --keys") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"the models key {path} can't be used: {error}") from error


def _signer(keys: Path, key: Key) -> Signer:
    try:
        return Signer.from_priv_key_uri(f"file2:{(keys / f'{MODELS}.pem').absolute()}", key)
    except (OSError, ValueError) as error:
        raise InputError(f"the models key in {keys} can't be used: {error}") from error
