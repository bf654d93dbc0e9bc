"""Files to text, exactly: every character comes through as it lies in the file.

`datasets`' own text reader drops line ends and turns CRLF into LF; a character model must see them. So text
is read as bytes, decompressed by suffix, and decoded piece by piece with Python's strict UTF-8 decoder.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from craft.utils.common import UserError

PIECE = 1 << 20  # bytes per read: large enough for numpy, small enough to stay in the processor's cache
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
# RuntimeError: an encrypted zip archive.
_BROKEN = (EOFError, OSError, lzma.LZMAError, zipfile.BadZipFile, zlib.error, RuntimeError)
# Bytes below space that no text uses; NUL isn't among them, since exact dumps do contain it.
_CONTROL = bytes(set(range(1, 32)) - set(b"\t\n\v\f\r\x1b")) + b"\x7f"
_BINARY = 0.01  # share of control bytes above which invalid UTF-8 means "not a text", not "another encoding"


def read_text(path: Path, suffix: str, errors: str) -> Iterator[str]:
    """The text of a file in pieces of about a megabyte.

    Args:
        suffix: of the file's name; the compressed ones are unpacked.
        errors: `strict` or `replace` (invalid bytes become U+FFFD).

    Raises:
        UserError: for binary files, invalid UTF-8 (with the offset of the byte) and broken archives.
    """
    for member in _members(path, suffix):
        decoder = codecs.getincrementaldecoder("utf-8")(errors)
        offset = 0  # of the first byte that the decoder hasn't turned into text
        data = b""
        while True:
            with _says_if_broken(path, suffix):
                data = member.read(PIECE)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise UserError(_not_utf8(path, error, offset - pending)) from None
            offset += len(data)
            if text:
                yield text
            if not data:
                break


def looks_like_text(path: Path) -> bool:
    """Whether the start of a file can be read and decodes as UTF-8; compressed files are taken for text."""
    if path.suffix.lower() in COMPRESSED:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(1 << 13)
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except (UnicodeDecodeError, OSError):
        return False
    return True


def _members(path: Path, suffix: str) -> Iterator[BinaryIO]:
    """The decompressed byte streams of a file: one, or the files of a zip archive in order of name."""
    try:
        with _says_if_broken(path, suffix):
            if suffix == ".zip":
                with zipfile.ZipFile(path) as archive:
                    names = sorted(i.filename for i in archive.infolist() if not i.is_dir())
                    for name in names:
                        with archive.open(name) as member:
                            yield member  # type: ignore[misc]
                return
            file = _open(path, suffix)
        with file:
            yield file
    except PermissionError:
        raise UserError(f"{path} can't be read: permission denied") from None


def _open(path: Path, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".bz2":
        return bz2.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".xz":
        return lzma.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".zst":
        return _zstandard(path).open(path, "rb")
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
def _says_if_broken(path: Path, suffix: str) -> Iterator[None]:
    """Turns what the decompressors raise on broken data into one sentence."""
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


def _not_utf8(path: Path, error: UnicodeDecodeError, base: int) -> str:
    data, offset = error.object, base + error.start
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") and offset == 0:
        return f"{path} is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 {path} > utf8.txt"
    control = (len(data) - len(data.translate(None, _CONTROL))) / len(data)
    if control > _BINARY:
        return (
            f"{path} isn't text: byte {offset} is invalid UTF-8 and {control:.0%} of the bytes around it are "
            "control codes; give a text file"
        )
    return (
        f"{path} isn't valid UTF-8 at byte {offset} (0x{data[error.start]:02x}); convert it, for example "
        "with iconv -f LATIN1 -t UTF-8, or read it with data.errors=replace"
    )
