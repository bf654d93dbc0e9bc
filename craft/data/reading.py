"""Files to text, exactly: every character comes through as it lies in the file.

`datasets`' own text reader drops line ends and turns CRLF into LF; a character model must see them. So text
is read as bytes, decompressed by suffix, and decoded piece by piece with Python's strict UTF-8 decoder.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from craft.utils.common import UserError

PIECE = 1 << 20  # bytes per read: large enough for numpy, small enough to stay in the processor's cache
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
# RuntimeError: an encrypted zip archive.
_BROKEN = (EOFError, OSError, lzma.LZMAError, zipfile.BadZipFile, zlib.error, RuntimeError)
_CONTINUATION = bytes(range(0x80, 0xC0))  # bytes inside a character
_UTF16, _UTF32 = (b"\xff\xfe", b"\xfe\xff"), (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
# Bytes below space that no text uses; NUL isn't among them, since exact dumps do contain it.
_CONTROL = bytes(set(range(1, 32)) - set(b"\t\n\v\f\r\x1b")) + b"\x7f"
_BINARY = 0.01  # share of control bytes above which invalid UTF-8 means "not a text", not "another encoding"
# Valid UTF-8 is refused, too, where more of the bytes of a first piece that is long enough are control codes.
_MOSTLY, _ENOUGH = 0.25, 256


class Span(NamedTuple):
    """A file, or the part of one that begins at byte `start` and ends before byte `end`.

    Cuts fall between characters: a part begins with the first character that starts at or behind `start`, and
    its successor with the first one at or behind `end`. Compressed files come whole.
    """

    path: Path
    suffix: str  # of the original name; the compressed ones are unpacked
    start: int = 0
    end: int | None = None


class Member(NamedTuple):
    """An open stream of bytes, what to call it in messages, and the place in the file of its first byte."""

    stream: BinaryIO
    name: str
    start: int = 0


def read_text(span: Span, errors: str) -> Iterator[str]:
    """The text of a file in pieces of about a megabyte.

    Args:
        errors: `strict` or `replace` (invalid bytes become U+FFFD).

    Raises:
        UserError: for binary files, invalid UTF-8 (with the offset of the byte) and broken archives.
    """
    for member in members(span):
        decoder = codecs.getincrementaldecoder("utf-8")(errors)
        offset = member.start  # of the first byte that the decoder hasn't turned into text
        data, first = b"", True
        while True:
            with _says_if_broken(span):
                data = member.stream.read(PIECE)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise UserError(not_utf8(member.name, error, offset - pending)) from None
            if first and errors == "strict":
                _refuse_binary(member.name, data)
                first = False
            offset += len(data)
            if text:
                yield text
            if not data:
                break


def looks_like_text(path: Path) -> bool:
    """Whether the start of a file decodes as UTF-8 text; compressed files are taken for text."""
    if path.suffix.lower() in COMPRESSED:
        return True
    with path.open("rb") as file:
        head = file.read(1 << 13)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return _control_share(head) <= _MOSTLY


def members(span: Span) -> Iterator[Member]:
    """The decompressed byte streams of a file: one, or the files of a zip archive in order of name.

    Raises:
        UserError: if it isn't a file, can't be read or isn't what its suffix says.
    """
    path, suffix = span.path, span.suffix
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(
                f"{path} isn't a regular file and can't be read twice (to count, then to encode); "
                "save what it holds to a file"
            )
        with _says_if_broken(span):
            if suffix == ".zip":
                yield from _archived(path)
                return
            file = _open(path, suffix)
        with file:
            start = 0
            if suffix not in COMPRESSED and (span.start or span.end is not None):
                start = _aligned(file, span.start)
                end = path.stat().st_size if span.end is None else _aligned(file, span.end)
                file.seek(start)
                file = io.BufferedReader(_Part(file, end - start))  # type: ignore[arg-type,assignment]
            yield Member(file, str(path), start)
    except PermissionError:
        raise UserError(f"{path} can't be read: permission denied") from None


def _archived(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        infos = [i for i in archive.infolist() if not i.is_dir() and not i.filename.startswith("__MACOSX/")]
        for info in sorted(infos, key=lambda i: i.filename):
            if info.flag_bits & 1:
                raise UserError(f"{path} is encrypted; unpack it with its password first")
            with archive.open(info) as member:
                yield Member(member, f"{info.filename} in {path}")  # type: ignore[arg-type]


class _Part(io.RawIOBase):
    """The next `length` bytes of a file."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self.file, self.left = file, length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(memoryview(buffer)[: self.left])  # type: ignore[attr-defined]
        if not count and self.left:
            raise UserError(f"{self.file.name} became shorter while it was being read")
        self.left -= count
        return count


def _aligned(file: BinaryIO, position: int) -> int:
    """`position`, moved behind the rest of a character that it lies in (three bytes at most)."""
    if not position:
        return 0
    file.seek(position)
    rest = file.read(3)
    return position + len(rest) - len(rest.lstrip(_CONTINUATION))


def _open(path: Path, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".bz2":
        return bz2.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".xz":
        return lzma.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".zst":
        return io.BufferedReader(_zstandard(path).open(path, "rb"))  # without it there is no readline
    return path.open("rb")


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f"{path} needs the zstandard package: pip install 'craft-lm[zstd]', or unpack it"
        ) from None
    return zstandard


@contextmanager
def _says_if_broken(span: Span) -> Iterator[None]:
    """Turns what the decompressors raise on broken data into one sentence."""
    path, suffix = span.path, span.suffix
    if suffix not in COMPRESSED:
        yield
        return
    broken: tuple[type[Exception], ...] = _BROKEN
    if suffix == ".zst":
        broken = (*broken, _zstandard(path).ZstdError)
    try:
        yield
    except PermissionError:
        raise
    except broken as error:
        raise UserError(f"{path} can't be unpacked as {suffix}: {error}; is it complete?") from None


def not_utf8(name: str, error: UnicodeDecodeError, base: int) -> str:
    """What to say about bytes that aren't UTF-8.

    Args:
        base: the place in the file of the first byte that was decoded.
    """
    data, offset = error.object, base + error.start
    if offset == 0:
        for marks, encoding in ((_UTF32, "UTF-32"), (_UTF16, "UTF-16")):
            if data.startswith(marks):
                return (
                    f"{name} is {encoding}, not UTF-8; convert it: iconv -f {encoding} -t UTF-8 OLD > NEW.txt"
                )
    control = _control_share(data)
    if control > _BINARY:
        return (
            f"{name} isn't text: byte {offset} is invalid UTF-8 and {control:.0%} of the bytes around it are "
            "control codes; give a text file"
        )
    return (
        f"{name} isn't valid UTF-8 at byte {offset} (0x{data[error.start]:02x}); convert it, for example "
        "with iconv -f LATIN1 -t UTF-8, or read it with data.errors=replace"
    )


def _refuse_binary(name: str, data: bytes) -> None:
    """Refuses bytes that are valid UTF-8 by accident: machine code, UTF-16 without a mark."""
    if len(data) < _ENOUGH:
        return
    problem, share, zeros = "", _control_share(data), [data[i::2].count(0) for i in (0, 1)]
    if max(zeros) > len(data) // 3 and min(zeros) < len(data) // 50:  # every second byte
        encoding = "UTF-16LE" if zeros[1] > zeros[0] else "UTF-16BE"
        problem = f"is {encoding}, not UTF-8; convert it: iconv -f {encoding} -t UTF-8 OLD > NEW.txt"
    elif share > _MOSTLY:
        problem = f"isn't text: {share:.0%} of its first bytes are control codes; give a text file"
    if problem:
        raise UserError(f"{name} {problem} (data.errors=replace reads it as it is)")


def _control_share(data: bytes) -> float:
    return (len(data) - len(data.translate(None, _CONTROL))) / max(len(data), 1)
