"""Turns a text into the ids that a model reads, the same way where it is trained and where it is asked.

A text is brought to NFKC and casefolded, so that width, case and composed or split accents make no difference. Its tokens are
the words and numbers, and each Chinese, Japanese kana or compatibility ideograph by itself: these scripts put no space between
words, and a character alone says enough about a topic. Signs, spaces and emoji are no tokens. Other scripts are cut into
runs of letters; those that write vowels as combining marks (Devanagari, Thai) fall into pieces. No disk, no network.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from toprope_shared.manifest import Tokenizer

PAD = 0
UNKNOWN = 1
FIRST = 2
"""The id of the vocabulary's first token."""

# Source: Unicode 15 blocks: iteration and zero marks, kana, CJK extension A, unified, compatibility, and planes 2 and 3.
_CJK = "\u3005\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Letters and digits, with the accents that have no composed form; one apostrophe may stand inside.
_WORD = rf"(?:[^\W_{_CJK}][\u0300-\u036f]*)+"
_TOKEN = re.compile(rf"[{_CJK}]|{_WORD}(?:['’]{_WORD})*")


def tokens(text: str) -> Iterator[str]:
    """Yield the tokens of a text, in order."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    for found in _TOKEN.finditer(folded):
        yield found[0].replace("’", "'")


def encode(text: str, tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Return the ids of a text, int32 [length]: cut or padded at its end to the tokenizer's length."""
    known = {token: number for number, token in enumerate(tokenizer.vocabulary, FIRST)}
    ids = np.full(tokenizer.length, PAD, np.int32)
    for place, token in enumerate(islice(tokens(text), tokenizer.length)):
        ids[place] = known.get(token, UNKNOWN)
    return ids
