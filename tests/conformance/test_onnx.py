"""ONNX's backend suite through our door: some operators in every run, all of them with `make test-peers`."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from tests.conformance.at_hand import AtHand
from tests.conformance.onnx_suite import (
    FORMS,
    Case,
    Suite,
    Tally,
    every_node_case,
    light_cases,
    node_modules,
    some_node_cases,
)
from tests.conformance.summary import ALL, Summary
from tests.conformance.wire import Asker
from tests.fakes.served import served
from tests.shared.serving.conftest import Shelf

# Every datatype, text, no element at all, scalars and NaN are among these, and chance adds some operators.
ALWAYS = (
    "add",
    "cast",
    "castlike",
    "constantofshape",
    "isinf",
    "isnan",
    "regex_full_match",
    "string_concat",
    "string_split",
)
SEED, DRAWN = 6, 16
# These make models that take seconds.
SLOW = frozenset({"attention", "deform_conv", "resize", "loop", "grid_sample"})


def asked(cases: Iterable[Case], *, at_hand: bool) -> Tally:
    """Serve every case in turn and return what came of it.

    Args:
        cases: of the suite.
        at_hand: through the road for models that are open, else the one for models that are to be asked for.
    """
    shelf = Shelf([])
    with served(AtHand(shelf) if at_hand else shelf) as place:
        asker = Asker(place)
        suite = Suite(shelf, asker)
        for case in cases:
            suite.ask(case)
        asker.close()
    return suite.tally


def test_operators_pass_through_our_door_as_they_pass_onnxruntime() -> None:
    drawn = random.Random(SEED).sample(sorted(set(node_modules()) - SLOW - set(ALWAYS)), DRAWN)
    cases = some_node_cases([*ALWAYS, *drawn])
    for at_hand in (True, False):
        tally = asked(cases, at_hand=at_hand)
        passes_as_bare(tally)
        assert tally.passed["binary"] > 100


def passes_as_bare(tally: Tally) -> None:
    """Require that whatever bare onnxruntime passes has passed through us, or has no form there."""
    assert tally.failures == []
    for form in FORMS:
        assert tally.passed[form] + tally.not_sent[form].total() == tally.bare


@pytest.mark.timeout(900)
@pytest.mark.skipif(not ALL, reason="takes some minutes: make test-peers")
@pytest.mark.parametrize("at_hand", [True, False], ids=["fast road", "slow road"])
def test_the_whole_suite_passes_through_our_door(summary: Summary, at_hand: bool) -> None:
    tally = asked([*every_node_case(), *light_cases()], at_hand=at_hand)
    summary.tell(f"onnx.backend.test, {'fast' if at_hand else 'slow'} road", tally.lines())
    assert tally.bare > 1600
    passes_as_bare(tally)
