"""The page on updates is held to the table and the constants that it tells of."""

from __future__ import annotations

from pathlib import Path

import pytest

from toprope_edge import figures, outbox, shadow, steps, update
from toprope_edge.life import LIFE, MAX_TRANSITIONS, State
from toprope_edge.steps import CrashLoopError, ShadowError, TrialError
from toprope_shared.trying import Limits

PAGE = (Path(__file__).parents[1] / "docs" / "explanation-updates.md").read_text()


def row(state: State) -> str:
    """Return a state's row as the page has it."""
    step = LIFE[state]
    cells = [state, step.doing, step.durable, ", ".join(step.then), step.error or "", step.after_power_loss or ""]
    return f"| {' | '.join(cell or '-' for cell in cells)} |"


def test_the_table_is_the_table() -> None:
    head, _, rest = PAGE.partition("|---|---|---|---|---|---|\n")
    assert head.endswith("| state | what is done | on disk before it | then | after an error | after power loss |\n")
    assert rest.partition("\n\n")[0].splitlines() == [row(state) for state in LIFE]


@pytest.mark.parametrize(
    "words",
    [
        f"After {MAX_TRANSITIONS} transitions",
        f"At most {outbox.MAX_REPORTS} reports wait",
        f"last {figures.WINDOW} calls",
        f"{Limits().error_rate:.0%}".replace("%", " %") + " of the calls more than before",
        f"{Limits().fallback_rate:.0%}".replace("%", " %") + " of the calls more than before",
        f"and {figures.SLACK_MS:g} ms",
        f"| {figures.LEAST_BAD} failures |",
        f"| {figures.LEAST_CALLS} calls of each |",
        *(f"`{code}`" for code in (CrashLoopError.code, ShadowError.code, TrialError.code, update.DISK)),
    ],
)
def test_the_numbers_and_codes_are_the_codes(words: str) -> None:
    assert words in PAGE


def test_the_words_for_numbers_are_right() -> None:
    assert (steps.MAX_ATTEMPTS, update.RETRY_S, shadow.SHARE) == (3, 5.0, 0.1)
    assert (Limits().latency, figures.CLASSES_DISAGREE, figures.NEAR_PPM) == (3.0, 0.5, 50_000)
    for words in ("ended three times", "after five seconds", "a tenth of the time", "three times the former"):
        assert words in PAGE
