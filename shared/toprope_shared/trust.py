"""What may be installed: TUF roles, and our rules over python-tuf's own client.

`ngclient` runs unmodified; only the fetcher differs between MQTT, HTTP and a directory. Everything here blocks: call it from
a worker thread. Three verdicts: FRESH; STALE (expired or unreachable: keep running, alarm later); ATTACK (a version, signature
or hash violation: refuse and report).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError, RepositoryError, SlowRetrievalError
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.ngclient import FetcherInterface, Updater

from toprope_shared.errors import LinkError, TrustError

log = logging.getLogger(__name__)

MODELS, ROLLOUTS = "models", "rollouts"
# Delegated path patterns; `*` does not match `/`.
DELEGATIONS: dict[str, list[str]] = {MODELS: ["models/*/*/*"], ROLLOUTS: ["rollouts/*"]}
COUNTER = "release_counter"
_MANIFEST_PATH = re.compile(r"models/([^/]+)/([^/]+)/manifest\.json")
_METADATA_NAME = re.compile(r"(?:(\d+)\.)?([A-Za-z0-9_-]+)\.json")
_BASE_URL = "toprope://trust/"


class Verdict(StrEnum):
    """What a refresh found."""

    FRESH = "fresh"
    STALE = "stale"
    ATTACK = "attack"


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The outcome of a refresh, with the reason where it is not FRESH."""

    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SignedRelease:
    """One release that the models role has signed; digest and length are of its manifest."""

    model: str
    version: str
    release_counter: int
    sha256: str
    length: int


class MetadataSource(Protocol):
    """One road to TUF metadata."""

    def get(self, role: str, version: int | None) -> bytes:
        """Return a role's metadata file; `version` is None for the timestamp. Blocks.

        Raises:
            FileNotFoundError: this version does not exist (yet).
            LinkError: it could not be fetched now.
        """


class DirectorySource:
    """Metadata from a folder: a USB stick, or the cloud's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, role: str, version: int | None) -> bytes:
        """Read `<version>.<role>.json`, or `<role>.json` without a version."""
        name = f"{role}.json" if version is None else f"{version}.{role}.json"
        return (self._folder / name).read_bytes()


class _Fetcher(FetcherInterface):
    """Hands ngclient's file names to a source."""

    def __init__(self, source: MetadataSource) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        match = _METADATA_NAME.fullmatch(url.removeprefix(_BASE_URL))
        if match is None:
            raise DownloadError(f"{url} is not a metadata file")
        version, role = match.groups()
        try:
            yield self._source.get(role, int(version) if version else None)
        except FileNotFoundError as error:
            raise DownloadHTTPError(f"{url} does not exist", 404) from error
        except LinkError as error:
            raise SlowRetrievalError(str(error)) from error


class TrustClient:
    """Keeps a device's metadata, and says which releases and rollouts are signed.

    Args:
        folder: where the metadata is kept; made when missing.
        bootstrap: the root metadata that came with the device's enrolment, the anchor of everything.
        source: the road to newer metadata.
        channel: the channel whose rollout is looked up with each refresh.
    """

    def __init__(self, folder: Path, bootstrap: bytes, source: MetadataSource, channel: str) -> None:
        self._folder = folder
        self._bootstrap = bootstrap
        self._fetcher = _Fetcher(source)
        self._rollout_path = f"rollouts/{channel}.json"
        self._updater: Updater | None = None
        self._releases: tuple[SignedRelease, ...] = ()
        self._rollout: TargetFile | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def refresh(self) -> Refreshed:
        """Fetch and verify newer metadata of all roles; what was trusted before stays when this fails."""
        try:
            updater = Updater(str(self._folder), _BASE_URL, fetcher=self._fetcher, bootstrap=self._bootstrap)
            updater.refresh()
            self._rollout = updater.get_targetinfo(self._rollout_path)
            updater.get_targetinfo("models/-/0.0.0/manifest.json")  # loads the delegated role, whatever it signs
            self._releases = self._signed_releases(updater)
        except (ExpiredMetadataError, DownloadError) as error:
            return Refreshed(Verdict.STALE, str(error))
        except RepositoryError as error:
            return Refreshed(Verdict.ATTACK, str(error))
        except OSError as error:
            return Refreshed(Verdict.STALE, f"the metadata can't be written: {error}")
        self._updater = updater
        return Refreshed(Verdict.FRESH)

    def _signed_releases(self, updater: Updater) -> tuple[SignedRelease, ...]:
        # ngclient has just verified and stored this file; each path is then looked up through it once more.
        file = self._folder / f"{MODELS}.json"
        names = Metadata[Targets].from_file(str(file)).signed.targets if file.exists() else {}
        found = []
        for path in names:
            match = _MANIFEST_PATH.fullmatch(path)
            target = updater.get_targetinfo(path) if match else None
            if match and target:
                found.append(SignedRelease(match[1], match[2], counter_of(target), target.hashes["sha256"], target.length))
        return tuple(found)

    @property
    def known(self) -> bool:
        """Whether a refresh has succeeded since the start."""
        return self._updater is not None

    @property
    def rollout(self) -> TargetFile | None:
        """The signed rollout document's digest and length; None when the channel has none."""
        return self._rollout

    def releases(self, model: str | None = None) -> tuple[SignedRelease, ...]:
        """Return the releases that the models role has signed, of one model or all, oldest first."""
        chosen = (release for release in self._releases if model in (None, release.model))
        return tuple(sorted(chosen, key=lambda release: (release.model, release.release_counter)))

    def require(self, model: str, version: str, sha256: str) -> SignedRelease:
        """Return the signed release of this name.

        Raises:
            TrustError: the models role has not signed it, or signed another manifest under this name.
        """
        for release in self.releases(model):
            if release.version == version:
                if release.sha256 != sha256:
                    raise TrustError(f"the rollout and the signed release {model} {version} name different manifests")
                return release
        raise TrustError(f"the release {model} {version} is not signed by the models role")


def counter_of(target: TargetFile) -> int:
    """Return the release counter in a target's signed custom fields.

    Raises:
        TrustError: there is none.
    """
    counter = (target.custom or {}).get(COUNTER)
    if not isinstance(counter, int) or counter < 1:
        raise TrustError(f"the signed target {target.path} has no {COUNTER}")
    return counter


def verify_target(target: TargetFile, data: bytes) -> None:
    """Hold bytes against a signed target.

    Raises:
        TrustError: length or digest differ.
    """
    try:
        target.verify_length_and_hashes(data)
    except RepositoryError as error:
        raise TrustError(f"{target.path} is not what was signed: {error}") from error
