"""Other people's words in Markdown and HTML: shown as they are, never read as markup."""

from __future__ import annotations

import html
import re
import unicodedata

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The content security policy of every page: no scripts, nothing from elsewhere."""


def inline(text: str) -> str:
    """Text for a line of Markdown: one line, and every character that could be markup as an entity, which
    can't be (CommonMark, section 2.5). What is safe between letters or digits (`a_b`, `3.5`) stays readable.
    """
    line = " ".join(_printable(text).split())
    markup = r"[^\w ,'.-]|\.(?=[^\W\d_])|^\d(?=\d*\.)|(?<!\w)_|_(?!\w)|^-|--+"
    return re.sub(markup, lambda found: _entities(found[0]), line)


def block(text: str) -> str:
    """Text of several lines for Markdown, laid out as it is: preformatted HTML, whose end it can't write."""
    shown = _printable(text.replace("\r\n", "\n").replace("\r", "\n"), keep="\n\t")
    shown = html.escape(shown, quote=False)
    shown = re.sub(r"[`*_\[\]|~\\$#]|^[-=+]+", lambda found: _entities(found[0]), shown, flags=re.MULTILINE)
    return f"<pre>\n{shown}\n</pre>"


def page(body: str, title: str = "craft") -> str:
    """A whole HTML page around a `body` that is escaped already, with a content security policy."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title></head>\n<body>{body}</body></html>\n"
    )


def _printable(text: str, keep: str = "") -> str:
    """Control characters, which include those that change the direction of writing, and unpaired surrogates
    become U+FFFD, ends of lines and paragraphs spaces; emoji may keep their joiners."""
    keep += "\u200d"
    unseen = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(c if c in keep or unicodedata.category(c) not in unseen else _replacement(c) for c in text)


def _replacement(char: str) -> str:
    return " " if char in "\t\n\v\f\r\x85\u2028\u2029" else "\ufffd"


def _entities(characters: str) -> str:
    return "".join(f"&#{ord(c)};" for c in characters)
