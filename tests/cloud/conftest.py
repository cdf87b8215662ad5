"""A new installation in a temporary folder: keys, metadata, registry."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner, Signer
from tests.fakes.releases import tiny_release
from tuf.api.metadata import Metadata, TargetFile, Targets

from toprope_cloud import ceremony
from toprope_cloud.keys import Keyring
from toprope_cloud.layout import Layout
from toprope_cloud.metadata import MetadataRepository
from toprope_cloud.registry import Registry
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.manifest import Manifest, encode
from toprope_shared.revocation import COUNTER, withdraw
from toprope_shared.trust import MODELS


@dataclass(frozen=True, slots=True)
class Installation:
    """What the tests of this room act on."""

    layout: Layout
    registry: Registry

    def next_models(
        self, *manifests: Manifest, signer: Signer | None = None, revoke: tuple[Manifest, str] | None = None
    ) -> bytes:
        """Return the next models metadata with these releases, one revoked, signed by the models key or by `signer`."""
        repository = self.registry.metadata
        md = Metadata[Targets].from_bytes(repository.read(MODELS))
        for manifest in manifests:
            target = TargetFile.from_data(manifest.path, encode(manifest), ["sha256"])
            target.unrecognized_fields["custom"] = {COUNTER: manifest.release_counter}
            md.signed.targets[manifest.path] = target
        if revoke:
            gone = withdraw(md.signed.targets, revoke[0].model, revoke[0].version, revoke[1])
            md.signed.targets[gone.path] = gone
        md.signed.version += 1
        md.signed.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=9)
        delegations = repository.targets().delegations
        assert delegations is not None
        key = next(iter(delegations.keys[one] for one in (delegations.roles or {})[MODELS].keyids))
        chosen = signer or Keyring(self.layout.keys).signer(MODELS, key)
        assert chosen is not None
        md.signatures.clear()
        md.sign(chosen)
        return bytes(md.to_bytes())

    def release(self, version: str, counter: int) -> Manifest:
        """Store a tiny release's blobs and its manifest."""
        manifest = tiny_release(self.registry.blobs, version=version, counter=counter)
        self.registry.blobs.put(encode(manifest))
        return manifest


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """Make keys and first metadata."""
    layout = Layout(tmp_path)
    ceremony.init(layout.keys, layout.trust)
    repository = MetadataRepository(layout.trust, Keyring(layout.keys), clock=SystemClock())
    return Installation(layout, Registry(repository, Blobs(layout.blobs), SystemClock()))


@pytest.fixture
def stranger() -> Signer:
    """A key that nobody delegates to."""
    return CryptoSigner.generate_ed25519()
