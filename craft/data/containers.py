"""Files as streams of bytes: compressed files and the members of archives are unpacked while they are read.

The content says how a file is packed, and its name whether it holds text or a table. Nothing is unpacked to
the disk, so it doesn't matter where a member says that it belongs. Members of a zip archive come in order of
name, those of a tar archive, which can only be read from front to back, as they lie in it.
"""

from __future__ import annotations

import bz2
import codecs
import functools
import gzip
import io
import lzma
import os
import re
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from craft.utils.errors import UserError, first_line
from craft.utils.logging import get_logger

TABLES = {
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"},
    **{".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"},
}
"""Formats by suffix; everything else is text."""
PACKED = {
    **{".gz": rb"\x1f\x8b\x08", ".bz2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", ".xz": rb"\xfd7zXZ\0"},
    **{".zst": rb"\x28\xb5\x2f\xfd", ".zip": rb"PK(\x03\x04|\x05\x06)"},
}
"""How packed files begin; tar archives have a checksum instead."""
OPEN: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# PDF, Office before 2007, 7z, RAR, PNG, JPEG, SQLite.
FOREIGN = rb"%PDF-|\xd0\xcf\x11\xe0|7z\xbc\xaf|Rar!\x1a\x07|\x89PNG\r\n|\xff\xd8\xff|SQLite f"
ZIPPED_DOCUMENTS = (".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".epub")
"""Archives of XML, which would make a corpus of tags."""
BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
HEAD = 1 << 13  # bytes that tell a text from other files
CONTINUATION = bytes(range(0x80, 0xC0))  # bytes inside a character of UTF-8
# RuntimeError: an encrypted zip archive, or one compressed in an unusual way. ValueError: pyarrow's, too.
UNREADABLE = (
    *(OSError, EOFError, ValueError, RuntimeError),
    *(lzma.LZMAError, zlib.error, zipfile.BadZipFile, tarfile.TarError),
)


class Span(NamedTuple):
    """A file, or the part of one between two bytes (of Parquet: between two row groups).

    Cuts fall between characters, or lines: a part begins with the first one that starts at or behind `start`,
    and its successor with the first one at or behind `end`. Packed files come whole.
    """

    path: Path
    start: int = 0
    end: int | None = None


class Member(NamedTuple):
    """An open stream of bytes.

    Args:
        name: in messages.
        format: by its name in an archive; empty if the file itself is the member.
        start, length: which part of the file it is.
    """

    stream: io.BufferedReader
    name: str
    format: str = ""
    start: int = 0
    length: int | None = None


def format_of(name: PurePath) -> str:
    """`text`, or the name of a table format: the suffix under that of a compression counts."""
    suffixes = [suffix.lower() for suffix in name.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return TABLES.get(suffixes[-1] if suffixes else "", "text")


def members(span: Span, encoding: str = "utf-8", lines: bool = False) -> Iterator[Member]:
    """The unpacked byte streams of a file: one, or the texts and tables of an archive. Hidden members and
    those that aren't text are left out, as they are in a folder.

    Args:
        encoding: of the texts.
        lines: that parts of files begin with a line, not within one.

    Raises:
        UserError: if it isn't a file, is a document, or an archive that holds no text or another archive.
    """
    path = span.path
    if path.exists() and not path.is_file():
        raise UserError(f"{path} isn't a regular file; save what it holds to one", code="file-unreadable")
    with path.open("rb") as file:
        if span.start or span.end is not None:
            start, end = (_aligned(file, position, lines) for position in (span.start, span.end))
            file.seek(start)
            yield Member(file, str(path), start=start, length=end - start)
            return
        head = file.peek(HEAD)
        if is_foreign(head, path):
            raise UserError(f"{path} is no text that craft reads; save it as plain text", code="text-format")
        packing = packing_of(head)
        if packing == ".zip":
            yield from _texts(path, _zipped(file), encoding)
            return
        stream = _decompressed(file, packing)
        if packing_of(stream.peek(HEAD)) == ".tar":
            yield from _texts(path, _tarred(stream), encoding)
        else:
            yield Member(stream, str(path))


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turns whatever the readers of files raise, which share no class of errors, into one line."""
    try:
        yield
    except (*UNREADABLE, getattr(sys.modules.get("zstandard"), "ZstdError", OSError)) as error:
        unreadable = getattr(error, "errno", None) is not None
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"{path} can't be read ({reason})" + ("" if unreadable else "; is it complete?"),
            code="file-unreadable" if unreadable else "text-format",
        ) from None


def packing_of(head: bytes) -> str:
    """The suffix of what a file is packed as, by its first bytes; empty if it isn't."""
    with suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")  # type: ignore[arg-type]
        return ".tar"
    return next((suffix for suffix, magic in PACKED.items() if re.match(magic, head)), "")


def is_text(head: bytes, name: PurePath, encoding: str) -> bool:
    """Whether the beginning of a file is text, or packed."""
    if is_foreign(head, name):
        return False
    return packing_of(head) != "" or decodes(head, encoding)


def decodes(head: bytes, encoding: str) -> bool:
    """Whether bytes, which may end within a character, are of an encoding."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeError:
        return False
    return True


def is_foreign(head: bytes, name: PurePath) -> bool:
    """Whether this is the beginning of a file of a known kind that holds no plain text."""
    if packing_of(head) != ".zip":
        return re.match(FOREIGN, head) is not None
    return name.suffix.lower() in ZIPPED_DOCUMENTS or head[30:].startswith((b"[Content_Types]", b"mimetype"))


def bom_encoding(head: bytes) -> str | None:
    """`utf-16` or `utf-32` if a byte-order mark says so."""
    return next((encoding for mark, encoding in BOMS.items() if head.startswith(mark)), None)


def _aligned(file: BinaryIO, position: int | None, lines: bool) -> int:
    """`position`, moved behind the rest of the line or character (three bytes at most) that it lies in."""
    if position is None:
        return os.fstat(file.fileno()).st_size
    if not position:
        return 0
    if lines:
        file.seek(position - 1)
        return position - 1 + len(file.readline())
    file.seek(position)
    rest = file.read(3)
    return position + len(rest) - len(rest.lstrip(CONTINUATION))


def _decompressed(file: io.BufferedReader, packing: str) -> io.BufferedReader:
    opened: Any
    if packing in OPEN:
        opened = OPEN[packing](file)
    elif packing == ".zst":
        try:
            import zstandard
        except ImportError:
            raise UserError(
                f"{file.name} needs the zstandard package: pip install 'craft-lm[zstd]'",
                code="package-missing",
            ) from None
        opened = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    else:
        return file
    return io.BufferedReader(opened)


def _zipped(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    archive = zipfile.ZipFile(file)
    for info in sorted((i for i in archive.infolist() if not i.is_dir()), key=lambda i: i.filename):
        yield info.filename, archive.open(info)


def _tarred(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    archive = tarfile.open(fileobj=stream, mode="r|")  # noqa: SIM115
    while info := archive.next():
        if not info.isdir():
            yield info.name, archive.extractfile(info) if info.isfile() else None
        archive.members.clear()  # type: ignore[attr-defined]  # they would add up
    while stream.read(1 << 16):  # to the checksum at its end
        pass


def _texts(path: Path, archived: Iterator[tuple[str, Any]], encoding: str) -> Iterator[Member]:
    """Those members of an archive that hold text or tables."""
    found, left_out = 0, []
    for inner, stream in archived:
        name, place = f"{inner} in {path}", PurePosixPath(inner)
        hidden = "__MACOSX" in place.parts or any(re.match(r"\.(?!\.$)", part) for part in place.parts)
        if hidden or stream is None:
            left_out.append(inner)
            continue
        member = io.BufferedReader(stream, HEAD)
        head, format = member.peek(HEAD), format_of(place)
        if packing_of(head) and not is_foreign(head, place):
            raise UserError(f"{name} is packed once more; unpack {path}", code="text-format")
        if format != "text" or is_text(head, place, encoding):
            found += 1
            yield Member(member, name, format)
        else:
            left_out.append(inner)
    if not found:
        raise UserError(f"{path} holds no text file (.txt, .jsonl, .csv, …)", code="text-missing")
    if left_out:
        _log_left_out(path, len(left_out), found + len(left_out), ", ".join(left_out[:3]))


@functools.cache  # an archive is read more than once
def _log_left_out(path: Path, count: int, total: int, some: str) -> None:
    get_logger(__name__).warning(
        f"{path}: {count} of {total} members are hidden or aren't text and are left out ({some})"
    )
