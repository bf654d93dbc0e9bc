from __future__ import annotations

import io
import sys

import pytest

from craft.utils.terminal import progress_bar, visible, visible_pieces


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


@pytest.mark.parametrize(
    ("terminal", "shown", "drawn"), [(True, True, 1), (True, False, 0), (False, True, 0)]
)
def test_progress_is_drawn_on_a_terminal_alone(
    terminal: bool, shown: bool, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(10, "characters", shown=shown) as bar:
        bar.update(4)
        assert not stream.getvalue()  # in the first seconds nothing is
        bar.refresh()
        assert ("4.00/10.0" in stream.getvalue()) == drawn
