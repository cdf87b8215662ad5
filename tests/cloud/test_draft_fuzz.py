"""Whatever stands in a draft, opening it ends with words or with one of our errors; a KMS is tried by what it signs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, SecretsHandler, Signature, Signer
from tests.cloud.conftest import Installation

from toprope_cloud import rotation
from toprope_cloud.draft_signing import Signing
from toprope_cloud.keys import Keyring
from toprope_shared.clock import SystemClock
from toprope_shared.errors import InputError, TopropeError
from toprope_shared.signing import PROBE, open_signer
from toprope_shared.trust import MODELS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a JSON value with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from places(value[key])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=250)
@given(data=st.data())
def test_a_draft_with_anything_in_it_ends_in_a_sentence(
    installation: Installation, tmp_path: Path, data: st.DataObject
) -> None:
    layout, file = installation.layout, tmp_path / "draft.json"
    draft = rotation.renew(installation.registry.metadata, Keyring(layout.keys), MODELS, clock=SystemClock())[0]
    document = json.loads(data.draw(st.sampled_from([draft.documents[0].metadata, draft.targets, draft.roots[0]])))
    where, key = data.draw(st.sampled_from(list(places(document))))
    where[key] = data.draw(JSON)
    field = data.draw(st.sampled_from(["metadata", "before", "targets", "roots"]))
    whole = json.loads(json.dumps({"schema": 1, "words": [], "targets": draft.targets, "roots": list(draft.roots)}))
    whole["documents"] = [{"role": MODELS, "metadata": draft.documents[0].metadata, "before": draft.documents[0].before}]
    if field in ("metadata", "before"):
        whole["documents"][0][field] = json.dumps(document)
    else:
        whole[field] = json.dumps(document) if field == "targets" else [json.dumps(document)]
    file.write_text(json.dumps(whole))
    for root in (None, layout.trust / "1.root.json"):
        with contextlib.suppress(TopropeError):
            assert Signing.open(file, str(layout.keys / "models.pem"), root, SystemClock()).words


class RemoteSigner(Signer):
    """A KMS in small: it signs with what it holds and does not look at the public key that it is given."""

    held = CryptoSigner.generate_ed25519()
    asked: list[bytes] = []  # noqa: RUF012 - the test's own record

    def __init__(self, public_key: Key) -> None:
        self._public_key = public_key

    @property
    def public_key(self) -> Key:
        return self._public_key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> RemoteSigner:
        if priv_key_uri.endswith("away"):
            raise ConnectionResetError("nobody answers")
        if priv_key_uri.endswith("odd"):
            raise RuntimeError("an error of the service's own library")
        return cls(public_key)

    def sign(self, payload: bytes) -> Signature:
        self.asked.append(payload)
        return Signature(self._public_key.keyid, self.held.sign(payload).signature)


@pytest.fixture
def kms() -> Iterator[None]:
    """Make the scheme `testkms:` known to securesystemslib, as its users may."""
    SIGNER_FOR_URI_SCHEME["testkms"] = RemoteSigner
    RemoteSigner.asked.clear()
    yield
    del SIGNER_FOR_URI_SCHEME["testkms"]


@pytest.mark.usefixtures("kms")
def test_a_kms_key_is_known_by_what_it_signs_and_never_by_metadata() -> None:
    foreign, own = CryptoSigner.generate_ed25519().public_key, RemoteSigner.held.public_key
    assert open_signer("testkms:one", [foreign, own]).public_key == own
    assert set(RemoteSigner.asked) == {PROBE}
    with pytest.raises(InputError, match="not one that is trusted"):
        open_signer("testkms:one", [foreign])


@pytest.mark.usefixtures("kms")
@pytest.mark.parametrize("uri", ["testkms:away", "testkms:odd"])
def test_a_kms_that_fails_is_a_sentence(uri: str) -> None:
    with pytest.raises(InputError, match=f"the key {uri} can't be used"):
        open_signer(uri, [RemoteSigner.held.public_key])


@pytest.mark.usefixtures("kms")
def test_a_role_moves_to_a_kms(installation: Installation) -> None:
    layout, repository = installation.layout, installation.registry.metadata
    public = RemoteSigner.held.public_key
    done = rotation.rotate(
        repository, Keyring(layout.keys), "timestamp", clock=SystemClock(), public=public, uri="testkms:one"
    )
    repository.apply(done.draft)
    before = repository.timestamp().version
    repository.do_timestamp(force=True)
    assert repository.timestamp().version == before + 1
