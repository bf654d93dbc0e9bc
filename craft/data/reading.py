"""Bytes to text, exactly: every character comes through as it lies in the file.

`datasets`' own text reader drops line ends and turns CRLF into LF; a character model must see them. So text
is read as bytes and decoded piece by piece with Python's own decoders: UTF-8, unless another is named.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from craft.data.containers import BINARY, MOSTLY, Member, Span, control_share, marked_encoding, members
from craft.utils.errors import UserError

PIECE = 1 << 20  # bytes per read: large enough for numpy, small enough to stay in the processor's cache
_ENOUGH = 256  # bytes that a first piece must have for valid UTF-8 to be taken for a binary file
_BINARY_DECODED = 0.05  # share of control codes above which what another encoding made isn't a text
_ONE_BYTE, _MANY_BYTES = (
    ("cp1252", "mac_roman", "cp850"),
    ("shift_jis", "gb18030", "euc_kr", "cp1251", "koi8_r"),
)


def read_text(span: Span, errors: str, encoding: str = "utf-8", separator: str = "") -> Iterator[str]:
    """The text of a file in pieces of about a megabyte.

    Args:
        errors: `strict` or `replace` (invalid bytes become U+FFFD).
        separator: between the members of an archive.

    Raises:
        UserError: for binary files, bytes that aren't of the encoding (with the offset of the first) and
            broken archives.
    """
    for number, member in enumerate(members(span)):
        if number and separator:
            yield separator
        yield from decoded(member, errors, encoding)


def decoded(member: Member, errors: str, encoding: str = "utf-8") -> Iterator[str]:
    """As `read_text`, of one member."""
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    offset, first = (
        member.start,
        errors == "strict",
    )  # of the first byte that the decoder hasn't turned into text
    while True:
        data = member.stream.read(PIECE)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise UserError(undecodable(member.name, error, offset - pending, encoding)) from None
        except UnicodeError as error:  # UTF-16 without a mark
            raise UserError(f"{member.name} isn't {encoding}: {error}; name another data.encoding") from None
        if first:
            _refuse_binary(member.name, data, text, encoding)
            first = False
        offset += len(data)
        if text:
            yield text
        if not data:
            break


def undecodable(name: str, error: UnicodeDecodeError, base: int, encoding: str = "utf-8") -> str:
    """What to say about bytes that aren't of the encoding.

    Args:
        base: the place in the file of the first byte that was decoded.
    """
    data, offset = error.object, base + error.start
    if encoding == "utf-8" and offset == 0 and (marked := marked_encoding(data)):
        return f"{name} is {marked.upper()}, not UTF-8; read it with data.encoding={marked}"
    place = f"byte {offset} (0x{data[error.start]:02x})"
    if encoding != "utf-8":
        ways = "name another data.encoding, or read it with data.errors=replace"
        return f"{name} isn't valid {encoding} at {place}; {ways}"
    control = control_share(data)
    if control > BINARY:
        return (
            f"{name} isn't text: byte {offset} is invalid UTF-8 and {control:.0%} of the bytes around it are "
            "control codes; give a text file"
        )
    return (
        f"{name} isn't valid UTF-8 at {place}; say what it is written in ({_likely(data)}), "
        "or read it with data.errors=replace"
    )


def _likely(data: bytes) -> str:
    """Encodings that the bytes may be of. In languages with Latin letters those beyond ASCII stand alone;
    0x80 to 0x9f are punctuation in cp1252, but control codes in Latin-1, so that isn't among them."""
    runs = re.findall(rb"[\x80-\xff]+", data)
    beyond = sum(map(len, runs))
    alone = beyond < 2.5 * len(runs) and beyond < 0.4 * len(data)
    likely = []
    for encoding in _ONE_BYTE if alone else _MANY_BYTES:
        try:
            codecs.getincrementaldecoder(encoding)().decode(data)
        except UnicodeDecodeError:
            continue
        likely.append(f"data.encoding={encoding}")
    return " or ".join([*likely[:1], "another one"] if alone else likely)


def _refuse_binary(name: str, data: bytes, text: str, encoding: str) -> None:
    """Refuses bytes that can be decoded by accident: machine code, UTF-16 without a mark."""
    if encoding != "utf-8":
        share = control_share(text.encode()) + text.count("\0") / max(len(text), 1)
        if share > _BINARY_DECODED:
            raise UserError(
                f"{name} isn't text in {encoding}: {share:.0%} of its first characters are control codes"
            )
        return
    if len(data) < _ENOUGH:
        return
    problem, share, zeros = "", control_share(data), [data[i::2].count(0) for i in (0, 1)]
    if max(zeros) > len(data) // 3 and min(zeros) < len(data) // 50:  # every second byte
        encoding = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
        problem = f"is {encoding.upper()}, not UTF-8; read it with data.encoding={encoding}"
    elif share > MOSTLY:
        problem = f"isn't text: {share:.0%} of its first bytes are control codes; give a text file"
    if problem:
        raise UserError(f"{name} {problem} (data.errors=replace reads it as it is)")
