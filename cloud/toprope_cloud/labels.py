"""Names that stand for a version of a model, such as `stable`, and where they come from. Pure.

A channel of the fleet is a label of every model that its signed rollout names. The settings may say otherwise, and an
operator's call (`toprope_cloud.label_book`) overrules both. Which release answers is decided in `toprope_cloud.shelf`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# It can't be taken for a version, which begins with a digit, and fits into TensorFlow Serving's paths.
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


def check_label(text: str) -> str:
    """Return `text` when it can be a label.

    Raises:
        ValueError: it can't.
    """
    if not _LABEL.fullmatch(text):
        raise ValueError(f"the label {text!r} must be 1 to 64 of the characters A-Z a-z 0-9 _ - and not begin with a digit")
    return text


def gather(channels: Mapping[str, str], settings: Mapping[str, str | int], operator: Mapping[str, str]) -> dict[str, str]:
    """Return what each label of one model aims at.

    Args:
        channels: versions by the channel whose rollout names them; a channel whose name can't be a label is left out.
        settings: versions or release counters by label.
        operator: the same, set by calls.
    """
    named = {label: version for label, version in channels.items() if _LABEL.fullmatch(label)}
    return {**named, **{label: str(version) for label, version in settings.items()}, **operator}
