"""Releases and rollouts: what was signed, and what each channel's devices should run."""

from __future__ import annotations

import json
import threading

import msgspec

from toprope_cloud.metadata import MetadataRepository
from toprope_shared.blobs import Blobs
from toprope_shared.clock import Clock
from toprope_shared.errors import InputError, IntegrityError, NotFoundError
from toprope_shared.manifest import Manifest, parse
from toprope_shared.messages import DesiredRelease, Rollout, decode
from toprope_shared.revocation import COUNTER, FLOOR, REVOKED, floors, revoked_because
from toprope_shared.topics import check_level
from toprope_shared.trust import MODELS, ROLLOUTS
from toprope_shared.trying import Limits, Shadow
from toprope_shared.verifying import counter_of

ACTIVATE_WITHIN_S = 30 * 24 * 3600


class Registry:
    """What this cloud knows of releases; all of it is in the signed metadata and the blobs it names."""

    def __init__(self, metadata: MetadataRepository, blobs: Blobs, clock: Clock) -> None:
        self.metadata = metadata
        self.blobs = blobs
        self._clock = clock
        self._rolling = threading.Lock()

    def accept(self, data: bytes) -> list[Manifest]:
        """Take in the models role's next metadata when everything it newly names is here and whole.

        Returns:
            The manifests of the new releases.

        Raises:
            InputError: a blob is missing, a manifest does not fit its path or its counter does not grow.
            TrustError: the metadata is not signed as it must be.
        """
        known = self.metadata.targets(MODELS).targets
        signed = self.metadata.check_models(data)
        fresh = [target for path, target in signed.targets.items() if path not in known]
        manifests = []
        for target in fresh:
            manifest = self._whole(target.hashes.get("sha256", ""))
            if manifest.path != target.path or manifest.release_counter != counter_of(target):
                raise InputError(f"the manifest of {target.path} names another release")
            if {REVOKED, FLOOR} & set(target.custom or {}):
                raise InputError(f"the release {target.path} is new and revoked at once; publish it first")
            newest = max((one.release_counter for one in self.releases(manifest.model)), default=0)
            if manifest.release_counter <= newest:
                raise InputError(
                    f"{COUNTER} {manifest.release_counter} of {manifest.model} {manifest.version} must be above {newest}"
                )
            manifests.append(manifest)
        self.metadata.accept_models(data)
        return manifests

    def _whole(self, digest: str) -> Manifest:
        try:
            manifest = parse(self.blobs.read(digest))
            for artifact in manifest.artifacts():
                for part in (artifact.sha256, artifact.chunks):
                    if part:
                        self.blobs.read(part)
        except IntegrityError as error:
            raise InputError(f"upload everything before the release is signed in: {error}") from error
        return manifest

    def releases(self, model: str | None = None) -> list[Manifest]:
        """Return the signed releases, of one model or all, oldest first."""
        paths = self.metadata.targets(MODELS).targets.values()
        manifests = [
            parse(self.blobs.read(target.hashes["sha256"]))
            for target in paths
            if model is None or target.path.startswith(f"models/{model}/")
        ]
        return sorted(manifests, key=lambda one: (one.model, one.release_counter))

    def whole(self) -> tuple[list[Manifest], dict[str, str]]:
        """Return the signed releases whose manifests can be read, oldest first, and why others can't, by manifest path."""
        manifests: list[Manifest] = []
        damaged: dict[str, str] = {}
        for path, target in self.metadata.targets(MODELS).targets.items():
            try:
                manifests.append(parse(self.blobs.read(target.hashes["sha256"])))
            except (IntegrityError, InputError) as error:
                damaged[path] = str(error)
        return sorted(manifests, key=lambda one: (one.model, one.release_counter)), damaged

    def revoked(self) -> dict[str, str]:
        """Return the manifest paths of the releases that were revoked, and why."""
        signed = self.metadata.targets(MODELS).targets
        least = floors(signed.values())
        return {path: why for path, target in signed.items() if (why := revoked_because(target, least))}

    def rollout(self, channel: str) -> tuple[Rollout, bytes] | None:
        """Return a channel's rollout and its signed bytes; None when the channel has none."""
        target = self.metadata.targets(ROLLOUTS).targets.get(f"rollouts/{channel}.json")
        if target is None:
            return None
        data = self.blobs.read(target.hashes["sha256"])
        return decode(Rollout, data), data

    def channels(self) -> list[str]:
        """Return the channels that have a rollout."""
        return [path.removeprefix("rollouts/").removesuffix(".json") for path in self.metadata.targets(ROLLOUTS).targets]

    def roll_out(
        self, channel: str, model: str, version: str, *, shadow: Shadow | None = None, limits: Limits | None = None
    ) -> Rollout:
        """Sign the next rollout of a channel: this release for its model, the others as they are.

        Args:
            channel: the channel.
            model: the release's model.
            version: the release's version.
            shadow: how long devices let it see live inputs before it may answer; None is what their settings say.
            limits: what it may do worse than the release before it; None is the usual.

        Raises:
            NotFoundError: no such signed release.
            InputError: the release was revoked.
        """
        check_level(channel, "the channel")
        with self._rolling:  # two requests at once must not both make the next version of what they have read
            release = self._signed(model, version)
            more = msgspec.structs.replace(release, shadow=shadow, limits=limits)
            return self._sign(channel, more)

    def retry(self, channel: str, model: str) -> Rollout:
        """Sign the next rollout of a channel, with which devices that refused its release of a model try it once more.

        Raises:
            NotFoundError: the channel names no release of the model.
        """
        check_level(channel, "the channel")
        with self._rolling:
            current = self.rollout(channel)
            named = next((one for one in current[0].releases if one.model == model), None) if current else None
            if named is None:
                raise NotFoundError(f"the channel {channel} has no rollout of a model {model}")
            return self._sign(channel, msgspec.structs.replace(named, retry=named.retry + 1))

    def _signed(self, model: str, version: str) -> DesiredRelease:
        signed = self.metadata.targets(MODELS).targets
        target = signed.get(f"models/{model}/{version}/manifest.json")
        if target is None:
            raise NotFoundError(f"there is no signed release {model} {version}")
        why = self.revoked().get(target.path)
        if why is not None:
            raise InputError(f"the release {model} {version} is not rolled out any more: {why}; choose another")
        return DesiredRelease(model, version, counter_of(target), target.hashes["sha256"], target.length)

    def _sign(self, channel: str, release: DesiredRelease) -> Rollout:
        current = self.rollout(channel)
        others = tuple(one for one in current[0].releases if one.model != release.model) if current else ()
        rollout = Rollout(
            schema=1,
            channel=channel,
            version=current[0].version + 1 if current else 1,
            releases=(*others, release),
            activate_before=int(self._clock.now()) + ACTIVATE_WITHIN_S,
        )
        data = msgspec.json.encode(rollout)
        self.blobs.put(data)
        self.metadata.put_target(ROLLOUTS, f"rollouts/{channel}.json", data)
        return rollout


def head(metadata: MetadataRepository) -> bytes:
    """Return the unsigned hint at the newest versions."""
    versions = metadata.current()
    return json.dumps({role: versions[role] for role in ("root", "snapshot", "timestamp")}).encode()
