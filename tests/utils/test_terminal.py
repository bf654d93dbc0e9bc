from __future__ import annotations

import pytest

from craft.utils.terminal import visible, visible_pieces


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("abc\u202ecba\u2066", r"abc\u202ecba\u2066"),
        ("error: all is well\rok", r"error: all is well\rok"),
        ("a\tb\nc\r\n", "a\tb\nc\r\n"),
        ("Größe 👩‍🚀 мир\u200f שלום", "Größe 👩‍🚀 мир\u200f שלום"),
        (r"\x1b", r"\x1b"),
    ],
)
def test_control_characters_are_shown_instead_of_obeyed(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert "".join(visible_pieces(text)) == shown  # character by character
