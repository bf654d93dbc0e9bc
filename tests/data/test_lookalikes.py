"""Characters that look like others: what is named instead of one that the alphabet lacks."""

from __future__ import annotations

import pytest

from craft.data.lookalikes import look_alikes, with_code_points


@pytest.mark.parametrize(
    ("char", "alphabet", "found"),
    [
        pytest.param("\u00e9", "cafe\u0301", ["e\u0301"], id="accent-in-two"),
        pytest.param("\u0301", "a\u00e9\u00edx", ["\u00e9", "\u00ed"], id="accent-in-one"),
        pytest.param("\ud55c", "\u1112\u1161\u11ab", ["\u1112\u1161\u11ab"], id="hangul-in-parts"),
        pytest.param(" ", "a\u202f", ["\u202f"], id="plain-space"),
        pytest.param("\u00a0", "a \u202f", [" ", "\u202f"], id="no-break-space"),
        pytest.param("\u201c", 'a"', ['"'], id="curly-quote"),
        pytest.param("'", "a\u2018\u2019", ["\u2018", "\u2019"], id="straight-quote"),
        pytest.param("\u2014", "a-", ["-"], id="dash"),
        pytest.param("-", "\u2212", ["\u2212"], id="minus"),
        pytest.param("\u2026", "a.", ["..."], id="ellipsis"),
        pytest.param(".", "a\u2026", ["\u2026"], id="dots"),
        pytest.param("\uff21", "Aa", ["A"], id="fullwidth"),
        pytest.param("\ufb01", "fi", ["fi"], id="ligature"),
        pytest.param("\r", "\n", ["\n"], id="line-end"),
        pytest.param("Q", "q", ["q"], id="case"),
        pytest.param("\u00fc", "uo", [], id="none"),
        pytest.param("e", "\u00e9", [], id="a-letter-is-no-accent"),
    ],
)
def test_look_alikes_of_a_character(char: str, alphabet: str, found: list[str]) -> None:
    assert look_alikes(char, alphabet) == found


def test_code_points_are_named() -> None:
    assert with_code_points("e\u0301") == "'e\u0301' (U+0065 U+0301)"
