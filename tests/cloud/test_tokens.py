"""Signed tokens: one algorithm, the right audience, an end; everything else is nobody."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from toprope_cloud.tokens import Algorithm, TokenProof
from toprope_shared.errors import InputError

SECRET = "0123456789abcdef0123456789abcdef"
ED = Ed25519PrivateKey.generate()
OTHER = Ed25519PrivateKey.generate()
RSA = generate_private_key(65537, 2048)


def public(key: Any) -> bytes:
    found: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return found


def claims(**more: Any) -> dict[str, Any]:
    known = {"sub": "alice", "aud": "cloud", "exp": time.time() + 60, **more}
    return {name: value for name, value in known.items() if value is not None}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., TokenProof]:
    def made(text: bytes, algorithm: Algorithm = "EdDSA", **more: str) -> TokenProof:
        file = tmp_path / "jwt"
        file.write_bytes(text)
        return TokenProof(file, algorithm, more.pop("audience", "cloud"), **more)

    return made


@pytest.mark.parametrize(
    ("algorithm", "verify", "sign"),
    [("EdDSA", public(ED), ED), ("RS256", public(RSA), RSA), ("HS256", SECRET.encode() + b"\n", SECRET)],
    ids=["EdDSA", "RS256", "HS256"],  # the keys are new in each process, and names of tests must not be
)
def test_a_good_token_is_its_subject(make: Callable[..., TokenProof], algorithm: str, verify: bytes, sign: Any) -> None:
    body = claims(models=["digits"], aud=["cloud", "other"])
    caller = make(verify, algorithm).caller("", jwt.encode(body, sign, algorithm))
    assert caller
    assert (caller.name, caller.models, caller.operator) == ("token:alice", frozenset({"digits"}), False)
    assert body["exp"] <= caller.until < body["exp"] + 10


@pytest.mark.parametrize(
    "change",
    [
        {"aud": "somebody-else"},
        {"aud": None},
        {"exp": time.time() - 60},
        {"exp": None},
        {"sub": None},
        {"nbf": time.time() + 600},
        {"iss": "evil"},
        {"models": "digits"},
        {"models": [1]},
    ],
)
def test_a_token_that_is_not_for_here_or_now_is_nobodys(make: Callable[..., TokenProof], change: dict[str, Any]) -> None:
    proof = make(public(ED), issuer="https://issuer")
    good = claims(iss="https://issuer")
    assert proof.caller("", jwt.encode(good, ED, "EdDSA"))
    assert proof.caller("", jwt.encode(claims(**{"iss": "https://issuer", **change}), ED, "EdDSA")) is None


def test_another_algorithm_is_refused_whatever_the_head_says(make: Callable[..., TokenProof]) -> None:
    proof = make(public(RSA), "RS256")
    unsigned = jwt.encode(claims(), "", "none")
    # The old trick: the public key's text as the secret of an HMAC.
    head, body, _ = jwt.encode(claims(), SECRET, "HS256").split(".")
    forged = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(f"{head}.{body}".encode(), public(RSA))
    for token in (
        unsigned,
        f"{head}.{body}.{jwt.utils.base64url_encode(forged).decode()}",
        jwt.encode(claims(), ED, "EdDSA"),
    ):
        assert proof.caller("", token) is None


@pytest.mark.parametrize("token", ["", "a.b", "a.b.c", "....", "e30.e30.", "\udcff.a.b"])
def test_what_is_no_token_is_nobodys(make: Callable[..., TokenProof], token: str) -> None:
    assert make(public(ED)).caller("", token) is None


def test_a_set_of_keys_is_chosen_from_by_id(make: Callable[..., TokenProof]) -> None:
    def entry(key: Any, kid: str, **more: str) -> dict[str, Any]:
        return {**json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key())), "kid": kid, **more}

    proof = make(json.dumps({"keys": [entry(ED, "one"), entry(OTHER, "two")]}).encode())
    assert proof.caller("", jwt.encode(claims(), OTHER, "EdDSA", headers={"kid": "two"}))
    assert proof.caller("", jwt.encode(claims(), OTHER, "EdDSA", headers={"kid": "one"})) is None
    assert proof.caller("", jwt.encode(claims(), OTHER, "EdDSA", headers={"kid": "three"})) is None
    assert proof.caller("", jwt.encode(claims(), OTHER, "EdDSA")) is None  # two keys, and nothing says which


def test_a_key_that_was_changed_counts_at_once(make: Callable[..., TokenProof], tmp_path: Path) -> None:
    proof = make(public(ED))
    (tmp_path / "jwt.new").write_bytes(public(OTHER))
    (tmp_path / "jwt.new").replace(tmp_path / "jwt")
    assert proof.caller("", jwt.encode(claims(), ED, "EdDSA")) is None
    assert proof.caller("", jwt.encode(claims(), OTHER, "EdDSA"))
    (tmp_path / "jwt").unlink()
    assert proof.caller("", jwt.encode(claims(), OTHER, "EdDSA")) is None


@pytest.mark.parametrize(
    ("text", "algorithm", "why"),
    [
        (b"short", "HS256", "at least 32"),
        (b"", "HS256", "must not be empty"),
        (public(RSA), "EdDSA", "EdDSA"),
        (public(ED), "RS256", "RS256"),
        (public(RSA), "HS256", "HS256"),
        (b"nonsense", "EdDSA", "EdDSA"),
        (ED.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "EdDSA", "public half"),
        (b'{"keys": []}', "EdDSA", "no public key"),
        (b'{"keys": ', "EdDSA", "holds no key"),
        (b'{"keys": [{"kty": "oct", "k": "c2hvcnQ"}]}', "HS256", "at least 32"),
    ],
    ids=range(10),
)
def test_a_file_that_holds_no_key_for_this_is_refused_at_the_start(
    make: Callable[..., TokenProof], text: bytes, algorithm: str, why: str
) -> None:
    with pytest.raises(InputError, match=why):
        make(text, algorithm)


def test_an_audience_must_be_named_and_the_file_must_be_there(make: Callable[..., TokenProof], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jwt_audience"):
        make(public(ED), audience="")
    with pytest.raises(InputError, match="holds no key"):
        TokenProof(tmp_path / "nothing", "EdDSA", "cloud")
