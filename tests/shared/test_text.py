"""A text becomes the same ids everywhere, whatever its language, width and case."""

from __future__ import annotations

import numpy as np
import pytest

from toprope_shared.manifest import Tokenizer
from toprope_shared.text import FIRST, PAD, UNKNOWN, encode, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("My computer is BROKEN!", ["my", "computer", "is", "broken"]),
        ("I don't, you don’t", ["i", "don't", "you", "don't"]),
        ("'quoted' rock 'n' roll", ["quoted", "rock", "n", "roll"]),
        ("version 3.11, 24/7", ["version", "3", "11", "24", "7"]),
        ("snake_case", ["snake", "case"]),
        ("café CAFE\u0301", ["café", "café"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("İstanbul", ["i\u0307stanbul"]),
        ("ｆｕｌｌ ｗｉｄｔｈ １２", ["full", "width", "12"]),
        ("我的电脑坏了。", ["我", "的", "电", "脑", "坏", "了"]),
        ("什么是AI？", ["什", "么", "是", "ai"]),
        ("𠀀字〇々", ["𠀀", "字", "〇", "々"]),
        ("カタカナ ひらがな", list("カタカナひらがな")),
        ("안녕하세요 привет", ["안녕하세요", "привет"]),
        ("😀 👩‍💻 !!! …", []),
        ("ok👍ok", ["ok", "ok"]),
        ("", []),
        (" \n\t", []),
        ("a\0b", ["a", "b"]),
    ],
)
def test_a_text_is_cut_into_words_numbers_and_single_chinese_characters(text: str, expected: list[str]) -> None:
    assert list(tokens(text)) == expected


def test_a_text_becomes_ids_and_is_padded_at_its_end() -> None:
    ids = encode("My computer burns: 电脑", Tokenizer(("my", "computer", "电"), 7))
    assert ids.dtype == np.int32
    assert ids.tolist() == [FIRST, FIRST + 1, UNKNOWN, FIRST + 2, UNKNOWN, PAD, PAD]


def test_a_text_without_tokens_is_padding_alone() -> None:
    assert encode("😀", Tokenizer(("a",), 3)).tolist() == [PAD] * 3


def test_a_very_long_text_is_cut() -> None:
    tokenizer = Tokenizer(("a",), 4)
    assert encode("a " * 100_000, tokenizer).tolist() == [FIRST] * 4
    assert encode("a" * 1_000_000, tokenizer).tolist() == [UNKNOWN, PAD, PAD, PAD]


def test_a_token_of_the_vocabulary_can_not_pass_for_padding() -> None:
    assert PAD not in encode("a b c", Tokenizer(("a", "b", "c"), 3))
