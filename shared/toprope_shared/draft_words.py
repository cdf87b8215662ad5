"""Says in words what a draft changes, out of the bytes that would be signed. What has no words is refused.

A change is named against the metadata before it only if that is proven: by the signer's own anchor, or by the signer's own
signature on it. Otherwise everything in the document is told as if it were new, so that nothing can hide in a forged past.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from toprope_shared import manifest as manifests
from toprope_shared.clock import Clock
from toprope_shared.digest import sha256
from toprope_shared.drafts import TOP, Delegator, Document, Draft, has_signed, keys_of, parse
from toprope_shared.errors import InputError, TrustError
from toprope_shared.revocation import COUNTER, FLOOR, MANIFEST_PATH, REVOKED
from toprope_shared.signing import short
from toprope_shared.trust import DELEGATIONS, MODELS
from toprope_shared.verifying import verify_target

KNOWN_CUSTOM = {COUNTER, REVOKED, FLOOR}


def proven(draft: Draft, anchor: bytes | None, own: Mapping[str, Key]) -> set[str]:
    """Return the roles whose earlier metadata is certain.

    Args:
        draft: what is to be signed.
        anchor: the signer's own root metadata; None when the signer keeps none.
        own: the signer's own public keys, by id.

    Raises:
        TrustError: the draft does not follow from the anchor.
    """
    found = {one.role for one in draft.documents if _signed_by(one, own)}
    if anchor is None:
        return found
    root = _follow(draft, parse(anchor, Root.type))
    targets = parse(draft.targets, Targets.type)
    try:
        root.verify_delegate(Targets.type, targets.signed_bytes, targets.signatures)
        for one in draft.documents:
            before = parse(one.before, one.role)
            delegator: Delegator = root if one.role in TOP else targets.signed
            delegator.verify_delegate(one.role, before.signed_bytes, before.signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(f"the draft does not follow from your root metadata: {error}; do not sign it") from error
    return {one.role for one in draft.documents}


def describe(draft: Draft, certain: set[str], clock: Clock) -> tuple[str, ...]:
    """Return what the draft says, a sentence a line.

    Args:
        draft: what is to be signed.
        certain: the roles whose earlier metadata may be compared with; see `proven`.
        clock: what says whether a document has expired.

    Raises:
        InputError: something in it has no words, or it has expired.
    """
    now = datetime.fromtimestamp(clock.now(), UTC)
    lines: list[str] = []
    for one in draft.documents:
        md, before = parse(one.metadata, one.role), parse(one.before, one.role)
        if md.signed.is_expired(now):
            raise InputError(f"the {one.role} metadata in this draft expired at {md.signed.expires}; prepare it anew")
        _refuse_unknown(one.role, md.signed)
        if one.role in certain:
            lines.append(f"{one.role} metadata, version {before.signed.version} to {md.signed.version}, until {_date(md)}")
            if md.signed.version != before.signed.version + 1:
                raise InputError(
                    f"version {before.signed.version + 1} of the {one.role} metadata comes next; prepare it anew"
                )
        else:
            lines.append(
                f"{one.role} metadata, version {md.signed.version}, until {_date(md)}; all of it, nothing is proven"
            )
        changes = list(_changes(draft, one, md.signed, before.signed if one.role in certain else None))
        lines += [f"  {line}" for line in changes or ["the same contents, signed anew"]]
    for line in lines:
        if not line.isprintable():
            raise InputError(f"the draft holds characters that can't be shown: {line!r}; do not sign it")
    return tuple(lines)


def _changes(draft: Draft, document: Document, new: Any, old: Any) -> Iterator[str]:
    yield from _delegations(new, old)
    if isinstance(new, Targets):
        yield from _targets(draft, document, new, old)


def _targets(draft: Draft, document: Document, new: Targets, old: Targets | None) -> Iterator[str]:
    claimed = parse(document.before, document.role).signed.targets
    earlier = old.targets if old else {}
    for path, target in new.targets.items():
        if earlier.get(path) == target:
            continue
        custom = _custom(target)
        match = MANIFEST_PATH.fullmatch(path)
        name = f"{match[1]} {match[2]}" if match else path
        kind = "release" if match else "target"
        if path not in earlier:
            yield f"adds the {kind} {name}: {COUNTER} {custom.get(COUNTER)}, sha256 {target.hashes['sha256']}"
            if document.role == MODELS:
                yield from _manifest(draft, path, target, required=path not in claimed)
        elif (target.hashes, target.length) != (earlier[path].hashes, earlier[path].length):
            yield f"REPLACES the {kind} {name} by other contents, sha256 {target.hashes['sha256']}"
        if REVOKED in custom:
            yield f"revokes {name}: {custom[REVOKED]}"
        if FLOOR in custom:
            yield f"revokes every release of {name.split()[0]} with a {COUNTER} below {custom[FLOOR]}"
        if path in earlier and REVOKED not in custom and custom != _custom(earlier[path]):
            yield f"CHANGES what is said of {name} to {dict(custom)}"
    for path in earlier:
        if path not in new.targets:
            yield f"REMOVES {path}"


def _manifest(draft: Draft, path: str, target: Any, *, required: bool) -> Iterator[str]:
    text = draft.manifests.get(path)
    if text is None:
        if required:
            raise InputError(
                f"the draft adds {path} and does not bring its manifest, so it can't be shown; prepare it anew"
            )
        return
    verify_target(target, text.encode())
    manifest = manifests.parse(text.encode())
    if manifest.path != path or manifest.release_counter != _custom(target).get(COUNTER):
        raise InputError(f"the manifest that the draft brings for {path} is of another release; do not sign it")
    recipe = manifest.provenance.recipe
    yield f"  made by the recipe {recipe}, data {manifest.provenance.data_sha256[:12]}, seed {manifest.provenance.seed}"
    for variant in manifest.variants:
        measured = f"{manifest.metric.name} {variant.measured.metric:.4g}" if variant.measured else "not measured"
        yield f"  {variant.name}: {variant.artifact.length:,} bytes, {measured}"


def _delegations(new: Any, old: Any) -> Iterator[str]:
    for role in _roles(new):
        after = _said(new, role)
        before = _said(old, role) if old is not None and role in _roles(old) else None
        if after != before:
            yield f"role {role}: {after}" + (f" (before: {before})" if before else "")
    for role in _roles(old) if old is not None else ():
        if role not in _roles(new):
            yield f"REMOVES the role {role}"
    if isinstance(new, Root) and not new.consistent_snapshot:
        yield "turns consistent snapshots OFF"


def _roles(signed: Any) -> list[str]:
    if isinstance(signed, Root):
        return list(signed.roles)
    delegations = signed.delegations
    if delegations is not None and delegations.roles is None:
        raise InputError("the draft delegates to hash bins, and these can't be shown")
    return list(delegations.roles) if delegations else []


def _said(delegator: Delegator, role: str) -> str:
    found: Any = delegator.get_delegated_role(role)
    keys = ", ".join(sorted(short(keyid) for keyid in keys_of(delegator, role)))
    said = f"{found.threshold} of {len(found.keyids)} keys sign ({keys})"
    paths = getattr(found, "paths", None)
    if paths is not None and paths != DELEGATIONS.get(role):
        said += f" for {', '.join(paths)}"
    return said if getattr(found, "terminating", True) else f"{said}, not terminating"


def _refuse_unknown(role: str, signed: Any) -> None:
    unknown = set(signed.unrecognized_fields)
    for target in getattr(signed, "targets", {}).values():
        if not isinstance(target.unrecognized_fields.get("custom", {}), dict):
            raise InputError(f"the custom fields of {target.path} can't be shown; it is not signed")
        unknown |= set(target.unrecognized_fields) - {"custom"} | set(_custom(target)) - KNOWN_CUSTOM
        if set(target.hashes) != {"sha256"}:
            raise InputError(f"{target.path} must be named by its sha256 alone")
    for delegated in _roles(signed):
        for keyid, key in keys_of(signed, delegated).items():
            # TUF does not ask for it, but people compare keys by their ids.
            if keyid != sha256(str(encode_canonical(key.to_dict())).encode()):
                raise InputError(
                    f"the id of the key {short(keyid)} is not made of the key; it can't be shown and is not signed"
                )
        unknown |= set(signed.get_delegated_role(delegated).unrecognized_fields)
        if getattr(signed.get_delegated_role(delegated), "path_hash_prefixes", None) is not None:
            raise InputError(f"the role {delegated} is delegated by hashes, and these can't be shown")
    if unknown:
        names = ", ".join(sorted(unknown))
        raise InputError(f"the {role} metadata says things that this program has no words for ({names}); it is not signed")


def _signed_by(document: Document, own: Mapping[str, Key]) -> bool:
    before = parse(document.before, document.role)
    return any(has_signed(before, key) for key in own.values())


def _follow(draft: Draft, anchor: Metadata[Root]) -> Root:
    roots = [parse(one, Root.type) for one in draft.roots]
    after = [one for one in roots if one.signed.version > anchor.signed.version]
    trusted = anchor.signed
    try:
        for one in after:
            trusted.verify_delegate(Root.type, one.signed_bytes, one.signatures)
            one.signed.verify_delegate(Root.type, one.signed_bytes, one.signatures)
            if one.signed.version != trusted.version + 1:
                raise TrustError(f"the draft's chain of roots has a gap after version {trusted.version}; do not sign it")
            trusted = one.signed
    except (RepositoryError, ValueError) as error:
        raise TrustError(f"the draft's roots do not follow from your root metadata: {error}; do not sign it") from error
    if not after and all(one.signed_bytes != anchor.signed_bytes for one in roots):
        raise TrustError(
            "the draft is of another installation than your root metadata; do not sign it, or name the right root with --root"
        )
    return trusted


def _custom(target: Any) -> Mapping[str, Any]:
    return target.custom if isinstance(target.custom, dict) else {}


def _date(md: Metadata[Any]) -> str:
    return str(md.signed.expires.date())
