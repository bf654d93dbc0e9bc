"""Other people's words in Markdown and HTML."""

from __future__ import annotations

import html
import re

from hypothesis import given
from hypothesis import strategies as st

from craft.utils.markup import POLICY, block, inline, page


@given(st.text())
def test_a_line_stays_one_line_without_markup(text: str) -> None:
    shown = inline(text)
    assert "\n" not in shown
    assert not re.search(r"[<>`*|\[\]()!\\~$@]|--", shown)
    assert not re.match(r"[-+#=]|\d+\.", shown)
    if text.isascii() and text.isprintable():
        assert html.unescape(shown) == " ".join(text.split())


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs"]) | st.sampled_from("\n<`*_-#")))
def test_a_block_shows_what_it_was_given(text: str) -> None:
    shown = block(text)
    assert shown.startswith("<pre>\n")
    assert shown.endswith("\n</pre>")
    inner = shown[6:-7]
    assert "<" not in inner
    assert "`" not in inner
    assert html.unescape(inner) == text


def test_nothing_but_a_line_break_ends_a_line() -> None:
    shown = block("a\u2028# b\x85- c\u2029\x1b[31m\u202ed\0")
    assert len(shown.splitlines()) == 3
    assert shown == "<pre>\na &#35; b - c \ufffd&#91;31m\ufffdd\ufffd\n</pre>"


def test_a_page_carries_a_policy() -> None:
    shown = page(block("</pre><script>x</script>"), "<b>")
    assert f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">' in shown
    assert "<script" not in shown
    assert "<title>&lt;b&gt;</title>" in shown
    assert "script-src" not in POLICY
    assert "default-src 'none'" in POLICY
