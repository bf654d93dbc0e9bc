"""Characters that look like others: what is said instead of one that the alphabet lacks."""

from __future__ import annotations

import pytest

from craft.data.lookalikes import doubled, look_alikes, named


@pytest.mark.parametrize(
    ("char", "alphabet", "found"),
    [
        pytest.param("\u00e9", "cafe\u0301", ["e\u0301"], id="accent-in-two"),
        pytest.param("\u0301", "caf\u00e9\u00e8", ["\u00e9"], id="accent-in-one"),
        pytest.param("\u1112", "\ud55c", ["\ud55c"], id="hangul-in-one"),
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
        pytest.param("\u0430", "a", ["a"], id="cyrillic"),
        pytest.param("\ufb01", "fi", ["fi"], id="ligature"),
        pytest.param("\r", "\n", ["\n"], id="line-end"),
        pytest.param("Q", "q", ["q"], id="case"),
        pytest.param("\u00fc", "uo", [], id="none"),
        pytest.param("e", "\u00e9", [], id="a-letter-is-no-accent"),
    ],
)
def test_what_an_alphabet_has_instead(char: str, alphabet: str, found: list[str]) -> None:
    around = {"\u0301": ("cafe", ""), "\u1112": ("", "\u1161\u11ab")}.get(char, ("", ""))
    assert look_alikes(char, alphabet, around) == found


def test_without_its_neighbours_a_mark_is_looked_up_in_the_letters_that_carry_it() -> None:
    assert look_alikes("\u0301", "aéíx") == ["é", "í"]


def test_signs_that_an_alphabet_has_in_two_ways() -> None:
    assert doubled("abé '\"-\u201c\u2014\t\n") == []
    spaces, accent = doubled(" e\u00e9\u0301\u202f")
    assert spaces == "' ' (U+0020) and '\\u202f' (U+202F)"
    assert accent == "'\u00e9' (U+00E9) and 'e\u0301' (U+0065 U+0301)"


def test_code_points_are_named() -> None:
    assert named("e\u0301") == "'e\u0301' (U+0065 U+0301)"
