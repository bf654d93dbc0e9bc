"""Names of text encodings, as Python knows them."""

from __future__ import annotations

import codecs
from encodings.aliases import aliases

from craft.utils.common import did_you_mean


def codec_name(encoding: str | None) -> str | None:
    """The one name of an encoding that has many (`UTF8`, `utf-8`); None if there is no such encoding."""
    try:
        found = codecs.lookup(encoding or "utf-8")
        b"a".decode(found.name, "replace")  # some codecs are of bytes to bytes
    except (LookupError, ValueError):
        return None
    return found.name if found.incrementaldecoder else None


def check_encoding(word: str) -> None:
    """The validator of a name of an encoding."""
    if codec_name(word) is None:
        near = did_you_mean(word.lower().replace("-", "_"), {*aliases, *aliases.values()})
        raise ValueError(f"is no encoding of Python{near} (utf-8, utf-16, cp1252, shift_jis, gb18030, …)")
