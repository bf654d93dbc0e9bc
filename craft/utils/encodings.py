"""Names of text encodings, as Python knows them."""

from __future__ import annotations

import codecs
from encodings.aliases import aliases

from craft.utils.common import did_you_mean

NO_CHARACTER_SETS = (
    *("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "unicode-escape"),
    *("raw-unicode-escape", "charmap", "mbcs", "oem"),
)
"""Codecs that texts aren't stored in, or that differ from machine to machine."""


def codec_name(encoding: str | None) -> str | None:
    """The one name of an encoding that has many (`UTF8`, `utf-8`); None if there is no such encoding."""
    try:
        found = codecs.lookup(encoding or "utf-8")
    except (LookupError, ValueError):
        return None
    known = found._is_text_encoding and found.incrementaldecoder and found.name not in NO_CHARACTER_SETS
    return found.name if known else None


def wrong_encoding(word: str, where: str) -> str:
    """What to say of a word that names no encoding; empty if it does.

    Args:
        where: the setting, to begin with: `data.encoding=`.
    """
    if codec_name(word):
        return ""
    near = did_you_mean(word.lower().replace("-", "_"), sorted({*aliases, *aliases.values()}))
    some = "utf-8, utf-16, cp1252, shift_jis, gb18030, …"
    return f"{where}{word} is no encoding that Python knows{near} (there are {some})"
