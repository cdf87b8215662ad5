"""What may leave, by rows: the release's word, the site's, and what is done to each input."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from tests.fakes.releases import tiny_release

from toprope_edge.privacy import SitePrivacy, decide
from toprope_shared.blobs import Blobs
from toprope_shared.errors import InputError
from toprope_shared.inference import InferenceRequest
from toprope_shared.manifest import Fallback, InputPrivacy, Manifest, Privacy, encode, parse
from toprope_shared.tensors import TensorSpec, numbers_of, to_bf16

NONE, FEATURES, REDACTED, FULL = Privacy.NONE, Privacy.FEATURES, Privacy.REDACTED, Privacy.FULL
FACE = TensorSpec("face", "UINT8", (-1, 4))
NAME = TensorSpec("name", "BYTES", (-1,))
POSE = TensorSpec("pose", "FP32", (-1, 3))


@pytest.fixture
def plain(blobs: Blobs) -> Manifest:
    """A release with three inputs: a picture, a text, and what another model makes of the picture."""
    return msgspec.structs.replace(tiny_release(blobs, model="who"), inputs=(FACE, NAME, POSE))


def release(plain: Manifest, privacy: Privacy, *words: InputPrivacy) -> Manifest:
    return parse(encode(msgspec.structs.replace(plain, fallback=Fallback(privacy, inputs=words))))


def face(privacy: Privacy = FULL, fill: Any = 0) -> InputPrivacy:
    return InputPrivacy("face", privacy, fill)


def name(privacy: Privacy = FULL, fill: Any = "?") -> InputPrivacy:
    return InputPrivacy("name", privacy, fill)


def pose(privacy: Privacy = FULL, fill: Any = None) -> InputPrivacy:
    return InputPrivacy("pose", privacy, fill, made_by="bones")


ROWS: list[tuple[Privacy, tuple[InputPrivacy, ...], dict[str, Privacy], str]] = [
    (FULL, (), {}, "full full full"),
    (FULL, (face(), name()), {}, "full full full"),
    (FULL, (face(REDACTED),), {}, "redacted full full"),
    (REDACTED, (face(),), {}, "redacted full full"),
    (REDACTED, (face(), name()), {}, "redacted redacted full"),
    (REDACTED, (pose(),), {}, "does not say what redacting it would leave out"),
    (REDACTED, (face(), name(), pose(fill=0.0)), {}, "nothing but fills"),
    (FEATURES, (face(), name(), pose()), {}, "redacted redacted features"),
    (FEATURES, (face(), pose()), {}, "the input 'name' is raw data and no feature"),
    (FULL, (face(FEATURES),), {}, "redacted full full"),
    (FULL, (face(FEATURES, None),), {}, "the input 'face' is raw data and no feature"),
    (FULL, (pose(FEATURES),), {}, "full full features"),
    (FULL, (face(NONE, None),), {}, "the input 'face' may never leave"),
    (NONE, (), {}, "(privacy none)"),
    (FULL, (face(), name()), {"*": REDACTED}, "redacted redacted full"),
    (FULL, (face(),), {"who": REDACTED}, "redacted full full"),
    (FULL, (face(),), {"other": NONE}, "full full full"),
    (FULL, (face(),), {"*": FULL, "who": NONE}, "(privacy none)"),
    (FULL, (face(),), {"who.face": REDACTED}, "redacted full full"),
    (FULL, (face(),), {"who.name": REDACTED}, "the input 'name' is to be redacted, and the release declares no fill"),
    (FULL, (), {"who.name": NONE}, "the input 'name' may never leave"),
    (FULL, (), {"who.nmae": NONE}, "the site has a rule for the input 'nmae', which the release does not have"),
    (NONE, (), {"*": FULL, "who": FULL, "who.face": FULL}, "(privacy none)"),
    (FULL, (face(REDACTED),), {"who.face": FULL}, "redacted full full"),
]


@pytest.mark.parametrize(("word", "words", "site", "said"), ROWS)
def test_each_input_leaves_as_the_tighter_word_says_or_nothing_does(
    plain: Manifest, word: Privacy, words: tuple[InputPrivacy, ...], site: dict[str, Privacy], said: str
) -> None:
    verdict = decide(release(plain, word, *words), SitePrivacy(site))
    if verdict.denied:
        assert "may not leave the device" in verdict.denied
        assert said in verdict.denied
    else:
        assert " ".join(verdict.fields[spec.name] for spec in (FACE, NAME, POSE)) == said
        assert verdict.makers == ({"bones"} if "features" in said else set())


@pytest.mark.parametrize(("word", "words"), [(word, words) for word, words, site, _ in ROWS if not site])
@pytest.mark.parametrize(
    "rule", [{"*": REDACTED}, {"who": FEATURES}, {"who": NONE}, {"who.face": REDACTED}, {"who.pose": NONE}]
)
def test_no_rule_of_a_site_lets_more_leave(
    plain: Manifest, word: Privacy, words: tuple[InputPrivacy, ...], rule: dict[str, Privacy]
) -> None:
    def leaving(site: dict[str, Privacy]) -> set[str]:
        verdict = decide(release(plain, word, *words), SitePrivacy(site))
        return {name for name, how in verdict.fields.items() if how is not REDACTED}

    assert leaving(rule) <= leaving({})


def request() -> InferenceRequest:
    return InferenceRequest(
        model="who",
        inputs={
            "face": np.full((2, 4), 9, np.uint8),
            "name": np.array([b"Ada", b"Bo"], dtype=object),
            "pose": np.ones((2, 3), np.float32),
        },
        id="Ada's door",
        parameters={"note": "Ada"},
    )


def test_a_redacted_input_keeps_its_shape_and_type_and_nothing_else(plain: Manifest) -> None:
    verdict = decide(release(plain, REDACTED, face(fill=127), name(fill="-")), SitePrivacy())
    asked = request()
    reduced = verdict.reduce(asked)
    assert reduced.inputs["face"].dtype == np.uint8
    assert reduced.inputs["face"].tolist() == [[127] * 4] * 2
    assert reduced.inputs["name"].tolist() == [b"-", b"-"]
    assert reduced.inputs["pose"] is asked.inputs["pose"]
    assert (reduced.id, dict(reduced.parameters)) == ("", {})
    assert asked.inputs["face"].tolist() == [[9] * 4] * 2


def test_a_redacted_input_of_bfloat16_is_filled_with_a_number(plain: Manifest) -> None:
    brain = msgspec.structs.replace(plain, inputs=(TensorSpec("face", "BF16", (-1, 4)), NAME, POSE))
    verdict = decide(release(brain, REDACTED, face(fill=0.5), name(fill="-")), SitePrivacy())
    asked = msgspec.structs.replace(request(), inputs={"face": to_bf16(np.ones((2, 4)))})
    assert numbers_of(verdict.reduce(asked).inputs["face"]).tolist() == [[0.5] * 4] * 2
    with pytest.raises(ValueError, match="the fill 1e\\+39 of input 'face' is no BF16"):
        release(brain, REDACTED, face(fill=1e39))


def test_a_request_that_may_leave_whole_leaves_as_it_is(plain: Manifest) -> None:
    asked = request()
    assert decide(release(plain, FULL), SitePrivacy()).reduce(asked) is asked


@pytest.mark.parametrize("rule", ["", "a b", ".x", "who.", "-", "**", "a/b"])
def test_a_rule_for_nothing_is_refused_with_a_sentence(rule: str) -> None:
    with pytest.raises(InputError, match=r"is for nothing: write \* for every model, MODEL, or MODEL.INPUT"):
        SitePrivacy({rule: NONE})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((face(REDACTED, None),), "the input 'face' is redacted and has no fill to leave in its place"),
        ((face(NONE, 0),), "never leaves .* so its fill means nothing"),
        ((face(fill=256),), "the fill 256 of input 'face' is no UINT8"),
        ((face(fill=0.5),), "the fill 0.5 of input 'face' is no UINT8"),
        ((face(fill=True),), "the fill True of input 'face' is no UINT8"),
        ((face(fill="x"),), "the fill 'x' of input 'face' is no UINT8"),
        ((name(fill=0),), "the fill 0 of input 'name' is no BYTES"),
        ((pose(fill=1e300),), "of input 'pose' is no FP32"),
        ((face(), face()), "names an input more than once"),
        ((InputPrivacy("fase"),), "names 'fase'; the inputs are face, name, pose"),
    ],
)
def test_a_release_that_contradicts_itself_is_refused_with_a_sentence(
    plain: Manifest, words: tuple[InputPrivacy, ...], sentence: str
) -> None:
    whole = msgspec.to_builtins(plain)
    whole["fallback"]["inputs"] = msgspec.to_builtins(words)
    with pytest.raises(InputError, match=sentence):
        parse(msgspec.json.encode(whole))
