"""What of a request may leave the device: the release's word, tightened by the site's. Pure.

A word on the whole request says: `none`, nothing leaves; `features`, only what a model on this device has made leaves as it
is; `redacted`, every input for which the release declares a fill is replaced by it, the others leave as they are; `full`, all
leave as they are. A word on one input says: `none`, no request with it leaves; `features`, it leaves only if it is one;
`redacted`, it is always replaced by its fill; `full`, nothing more. Of two words the tighter one counts. Replacing keeps shape
and datatype, so that the receiver's model still runs. What can't be done as it is asked is denied: a redaction without a fill,
a rule for an input that the release does not have, or a request of which only fills would be left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from toprope_shared.errors import InputError
from toprope_shared.inference import InferenceRequest
from toprope_shared.manifest import InputPrivacy, Manifest, Privacy
from toprope_shared.tensors import BF16, Array, to_bf16

EVERY = "*"
_ORDER = (Privacy.NONE, Privacy.FEATURES, Privacy.REDACTED, Privacy.FULL)
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
Fill = bool | int | float | str


def tighter(one: Privacy, other: Privacy) -> Privacy:
    """Return the word that lets less leave."""
    return min(one, other, key=_ORDER.index)


class SitePrivacy:
    """The site's rules, from its settings; they can only tighten a release's word.

    Args:
        rules: words by `*` for every model, `MODEL`, or `MODEL.INPUT`.

    Raises:
        InputError: a name is none of these.
    """

    def __init__(self, rules: Mapping[str, Privacy] | None = None) -> None:
        self._rules = dict(rules or {})
        for name in self._rules:
            model, dot, tensor = name.partition(".")
            if name != EVERY and not (_SLUG.fullmatch(model) and (tensor or not dot)):
                raise InputError(
                    f"the privacy rule {name!r} is for nothing: write * for every model, MODEL, or MODEL.INPUT"
                )

    def request(self, model: str) -> Privacy:
        """Return the site's word on whole requests of a model."""
        return tighter(self._rules.get(EVERY, Privacy.FULL), self._rules.get(model, Privacy.FULL))

    def inputs(self, model: str) -> dict[str, Privacy]:
        """Return the site's words on single inputs of a model."""
        start = f"{model}."
        return {name.removeprefix(start): word for name, word in self._rules.items() if name.startswith(start)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What may leave of the requests of one release.

    Attributes:
        privacy: the word on the request.
        denied: why nothing may, as a clause; empty where something may.
        fields: how each input leaves, by name: `full`, `features` or `redacted`.
        fills: what stands for the inputs that are redacted.
        makers: the models that must be held here, because they make the inputs that leave as features.
    """

    privacy: Privacy
    denied: str = ""
    fields: Mapping[str, Privacy] = field(default_factory=dict)
    fills: Mapping[str, Fill] = field(default_factory=dict)
    makers: frozenset[str] = frozenset()

    def reduce(self, request: InferenceRequest) -> InferenceRequest:
        """Return the request as it may leave.

        Where anything is redacted or only features leave, the caller's own id and parameters stay here too: nobody has said
        what they hold.
        """
        if all(how is Privacy.FULL for how in self.fields.values()):
            return request
        inputs = {
            name: _filled(array, self.fills[name]) if name in self.fills else array
            for name, array in request.inputs.items()
        }
        return replace(request, inputs=inputs, id="", parameters={})


def decide(manifest: Manifest, site: SitePrivacy) -> Verdict:
    """Return what may leave of a release's requests."""
    privacy = tighter(manifest.fallback.privacy, site.request(manifest.model))
    if privacy is Privacy.NONE:
        return _denied(privacy, "")
    names = [spec.name for spec in manifest.inputs]
    words = site.inputs(manifest.model)
    if unknown := words.keys() - set(names):
        return _denied(privacy, f"the site has a rule for the input {min(unknown)!r}, which the release does not have")
    declared = {word.input: word for word in manifest.fallback.inputs}
    fields: dict[str, Privacy] = {}
    for name in names:
        word = declared.get(name, InputPrivacy(name))
        how = _how(word, privacy, tighter(word.privacy, words.get(name, Privacy.FULL)))
        if not isinstance(how, Privacy):  # which is a text too
            return _denied(privacy, how)
        fields[name] = how
    fills = {
        name: word.fill for name, word in declared.items() if fields[name] is Privacy.REDACTED and word.fill is not None
    }
    if privacy is Privacy.REDACTED and not any(word.fill is not None for word in declared.values()):
        return _denied(privacy, "the release does not say what redacting it would leave out")
    if len(fills) == len(names):
        return _denied(privacy, "nothing but fills would be left of a request")
    makers = frozenset(declared[name].made_by for name, how in fields.items() if how is Privacy.FEATURES)
    return Verdict(privacy, "", fields, fills, makers)


def _how(word: InputPrivacy, request: Privacy, own: Privacy) -> Privacy | str:
    """Return how one input leaves, or as a clause why no request with it does."""
    limit = tighter(request, own)
    if own is Privacy.NONE:
        return f"the input {word.input!r} may never leave"
    if limit is Privacy.FULL:
        return Privacy.FULL
    if word.fill is not None:  # before the features: what `redacted` replaces, the tighter word must not let leave
        return Privacy.REDACTED
    if limit is Privacy.FEATURES and word.made_by:
        return Privacy.FEATURES
    if limit is Privacy.FEATURES:
        return f"the input {word.input!r} is raw data and no feature, and the release declares no fill for it"
    if own is Privacy.REDACTED:
        return f"the input {word.input!r} is to be redacted, and the release declares no fill for it"
    return Privacy.FULL


def _denied(privacy: Privacy, why: str) -> Verdict:
    clause = f"the cloud was not asked because the inputs may not leave the device (privacy {privacy})"
    return Verdict(privacy, f"{clause}: {why}" if why else clause)


def _filled(array: Array, fill: Fill) -> Array:
    value = fill.encode() if isinstance(fill, str) else fill
    if array.dtype == BF16:
        return np.broadcast_to(to_bf16(np.asarray(value)), array.shape)
    return np.full(array.shape, value, dtype=array.dtype)
