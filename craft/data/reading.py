"""Bytes to text, exactly: every character comes through as it lies in the file.

`datasets`' own text reader drops line ends and turns CRLF into LF; a character model must see them. So text
is read as bytes and decoded piece by piece with Python's own decoders: UTF-8, unless another is named.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from craft.data.containers import Member, bom_encoding, decodes
from craft.utils.errors import UserError

PIECE = 1 << 20  # bytes per read: large enough for numpy, small enough to stay in the processor's cache
COMMON = ("cp1252", "shift_jis", "gb18030", "euc_kr", "cp1251", "koi8_r")
"""Encodings that a message names if the bytes can be of them."""


def decoded(member: Member, errors: str, encoding: str) -> Iterator[str]:
    """The text of a stream in pieces of about a megabyte.

    Args:
        errors: `strict` or `replace` (invalid bytes become U+FFFD).

    Raises:
        UserError: for bytes that aren't of the encoding, with the place of the first.
    """
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    offset, left = member.start, member.length  # in the file
    while True:
        data = member.stream.read(PIECE if left is None else min(PIECE, left))
        if left is not None:
            if left and not data:
                raise UserError(f"{member.name} became shorter while it was being read", code="text-changed")
            left -= len(data)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _undecodable(member.name, error, offset - pending, encoding) from None
        if offset == member.start and encoding.startswith("utf-8") and errors == "strict":
            _refuse_utf16(member.name, data)
        offset += len(data)
        if text:
            yield text
        if not data:
            break


def _undecodable(name: str, error: UnicodeDecodeError, base: int, encoding: str) -> UserError:
    """What to say about bytes that aren't of the encoding, the first of which lies at `base` in the file."""
    data, offset = error.object, base + error.start
    marked = bom_encoding(data) if offset == 0 else None
    likely = [marked] if marked else [other for other in COMMON if decodes(data, other)]
    return UserError(
        f"{name} isn't valid {encoding} at byte {offset} (0x{data[error.start]:02x}); if it is text, name "
        f"its encoding ({' or '.join(f'data.encoding={each}' for each in likely or ['…'])}), or read it with "
        "data.errors=replace",
        code="text-encoding",
    )


def _refuse_utf16(name: str, data: bytes) -> None:
    """Refuses UTF-16 without a mark, which is valid UTF-8 where every second byte is NUL."""
    even, odd = data[::2].count(0), data[1::2].count(0)
    if len(data) > 99 and max(even, odd) > len(data) // 3 and min(even, odd) < len(data) // 50:
        raise UserError(
            f"{name} is UTF-16; read it with data.encoding=utf-16-{'le' if odd > even else 'be'} (or as it "
            "is, with data.errors=replace)",
            code="text-encoding",
        )
