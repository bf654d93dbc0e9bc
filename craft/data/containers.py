"""What is inside a file: its own bytes, or the members of an archive, unpacked while they are read.

The content says how a file is packed, and where it doesn't, the name; the name says what is in it. Nothing is
written to the disk, so it doesn't matter where a member says that it belongs. Members of a zip archive come
in order of name, those of a tar archive, which can only be read from front to back, as they lie in it.
"""

from __future__ import annotations

import bz2
import codecs
import functools
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from craft.utils.errors import UserError
from craft.utils.logging import get_logger

COMPRESSED, ARCHIVES = (".gz", ".bz2", ".xz", ".zst"), (".tar", ".zip")
_SHORT = {".tgz": ".tar.gz", ".tbz": ".tar.bz2", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}
TABLES = {
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"},
    **{".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"},
}
"""Formats by suffix; everything else is text."""

HEAD = 1 << 13  # bytes that tell a text from other files
_CONTINUATION = bytes(range(0x80, 0xC0))  # bytes inside a character of UTF-8
# Bytes below space that no text uses; NUL isn't among them, since exact dumps do contain it.
_CONTROL = bytes(set(range(1, 32)) - set(b"\t\n\v\f\r\x1b")) + b"\x7f"
BINARY = 0.01  # share of control bytes above which invalid UTF-8 means "not a text", not "another encoding"
# Valid UTF-8 is refused, too, where more of the bytes of a first piece are control codes.
MOSTLY = 0.25

_MAGIC = {
    b"\x1f\x8b\x08": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ\0": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"PK\3\4": ".zip",
    b"PK\5\6": ".zip",
}
_BZ2_BLOCK = (b"1AY&SY", b"\x17rE8P\x90")  # follows BZh and a digit, which a text may begin with
_FOREIGN = {
    b"%PDF-": "a PDF document",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Office document",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\7": "a RAR archive",
    b"\x89PNG\r\n\x1a\n": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"SQLite format 3\0": "a database",
}
_ZIPPED = {
    **dict.fromkeys((".docx", ".xlsx", ".pptx"), "an Office document"),
    **dict.fromkeys((".odt", ".ods", ".odp"), "an OpenDocument file"),
    ".epub": "an e-book",
}
"""Documents that are zip archives of XML."""
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# RuntimeError: an encrypted zip archive, or one compressed in another way.
_BROKEN = (EOFError, OSError, lzma.LZMAError, zipfile.BadZipFile, zlib.error, RuntimeError, tarfile.TarError)


class Contents(NamedTuple):
    """How a file is packed (`.tar.gz`; empty if it isn't), and the format of what is in it."""

    packing: str
    format: str


class Span(NamedTuple):
    """A file, or the part of one that begins at byte `start` and ends before byte `end`.

    Cuts fall between characters: a part begins with the first character that starts at or behind `start`, and
    its successor with the first one at or behind `end`. Packed files come whole.
    """

    path: Path
    packing: str = ""
    start: int = 0
    end: int | None = None
    format: str | None = None  # which members of an archive must have by their names


class Member(NamedTuple):
    """An open stream of bytes, what to call it in messages, and the place in the file of its first byte."""

    stream: BinaryIO
    name: str
    start: int = 0


def look_into(path: Path, name: PurePath, format: str = "auto") -> Contents:
    """How a file is packed and what is in it.

    Args:
        name: its original name.
        format: of the text or tables in it; `auto` goes by the names.

    Raises:
        UserError: for a file of a known kind that holds no plain text, and an archive without any.
    """
    packing = _packing(path, name)
    if format == "auto" and packing.startswith(ARCHIVES):
        for _, format in _members(Span(path, packing)):
            return Contents(packing, format)
    return Contents(packing, format_of(name) if format == "auto" else format)


def format_of(name: PurePath) -> str:
    """`text`, or the name of a table format: the suffix under that of a compression counts."""
    inner = name.name.lower().removesuffix(_packing_by_name(name))
    return TABLES.get(PurePath(inner).suffix, "text")


def was_misread(path: Path, packing: str, format: str) -> bool:
    """Whether the first version of craft read another text from this archive, which caches may still hold."""
    if packing != ".zip":
        return packing.startswith(".tar")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(map(_is_hidden, names)) or (len(names) > 1 and format in ("csv", "json"))


def _is_hidden(member: str) -> bool:
    parts = PurePosixPath(member).parts
    return "__MACOSX" in parts or any(part.startswith(".") and part != ".." for part in parts)


def members(span: Span) -> Iterator[Member]:
    """The unpacked byte streams of a file: one, or the texts and tables of an archive. Hidden members and
    those that aren't text are left out, as they are in a folder.

    Raises:
        UserError: if it isn't a file, can't be read, isn't what it seems, or holds another archive or a
            member of another format.
    """
    for member, format in _members(span):
        if span.format not in (None, format):
            kinds = " and ".join(sorted((str(span.format), format)))
            raise UserError(
                f"{span.path} mixes {kinds} files ({member.name}); unpack it and choose one "
                "kind with a pattern"
            )
        yield member


def looks_like_text(path: Path, encoding: str = "utf-8") -> bool:
    """Whether the start of a file decodes as text; what is named as packed is taken for text."""
    if _packing_by_name(path):
        return True
    with path.open("rb") as file:
        head = file.read(HEAD)
    if _foreign(head, path):
        return False
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeError:
        return False
    return control_share(head) <= MOSTLY if encoding == "utf-8" else control_share(text.encode()) <= BINARY


def marked_encoding(head: bytes) -> str | None:
    """`utf-16` or `utf-32` if a byte-order mark says so."""
    return next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), None)


def control_share(data: bytes) -> float:
    """The share of bytes that are control codes."""
    return (len(data) - len(data.translate(None, _CONTROL))) / max(len(data), 1)


def _packing_by_name(name: PurePath) -> str:
    """The suffixes of a name that say how a file is packed, `.tgz` as it is written."""
    suffixes = [suffix.lower() for suffix in name.suffixes]
    if suffixes and suffixes[-1] in _SHORT:
        return suffixes[-1]
    packing = ""
    if suffixes and suffixes[-1] in (*COMPRESSED, ".zip"):
        packing = suffixes.pop()
    if suffixes and suffixes[-1] == ".tar" and packing != ".zip":
        packing = ".tar" + packing
    return packing


def _packing(path: Path, name: PurePath) -> str:
    named = _packing_by_name(name)
    named = _SHORT.get(named, named)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return named
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:  # said when it is read
        return named
    if kind := _foreign(head, name):
        way = (
            "unpack it and give the folder"
            if kind.endswith("archive")
            else "give its text as a plain text file"
        )
        raise UserError(f"{path} is {kind}; {way}")
    packing = _by_magic(head)
    if packing in COMPRESSED and not named.startswith(".tar"):
        try:
            with path.open("rb") as file, _decompressed(file, packing, path) as stream:
                return _by_magic(stream.read(512), (".tar",)) + packing
        except UserError:  # said when it is read
            return packing
    if packing in COMPRESSED:
        return ".tar" + packing
    return packing or named


def _by_magic(head: bytes, kinds: tuple[str, ...] = (*COMPRESSED, *ARCHIVES)) -> str:
    found = next((suffix for magic, suffix in _MAGIC.items() if head.startswith(magic)), "")
    if found == ".bz2" and not head[4:].startswith(_BZ2_BLOCK):
        found = ""
    with suppress(tarfile.HeaderError):  # it has a checksum
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")  # type: ignore[arg-type]
        found = ".tar"
    return found if found in kinds else ""


def _foreign(head: bytes, name: PurePath) -> str | None:
    """What kind of file without plain text this is."""
    if head.startswith(b"PK\3\4"):
        if head[30:].startswith((b"[Content_Types].xml", b"mimetype")):
            return _ZIPPED.get(name.suffix.lower(), "an Office document or e-book")
        return _ZIPPED.get(name.suffix.lower())
    return next((kind for magic, kind in _FOREIGN.items() if head.startswith(magic)), None)


def _members(span: Span) -> Iterator[tuple[Member, str]]:
    """Every member that is read, with its format; of what isn't an archive, the file itself."""
    path, packing = span.path, span.packing
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(
                f"{path} isn't a regular file and can't be read twice (to count, then to encode); "
                "save what it holds to a file"
            )
        with path.open("rb") as file:
            if packing == ".zip":
                yield from _texts_in(path, _zipped(file, path))
            elif packing.startswith(".tar"):
                yield from _texts_in(path, _tarred(file, packing, path))
            elif packing:
                with _decompressed(file, packing, path) as stream:
                    yield Member(stream, str(path)), span.format or "text"
            else:
                yield _part(file, span), span.format or "text"
    except PermissionError:
        raise UserError(f"{path} can't be read: permission denied") from None


def _part(file: BinaryIO, span: Span) -> Member:
    if not span.start and span.end is None:
        return Member(file, str(span.path))
    start = _aligned(file, span.start)
    end = os.fstat(file.fileno()).st_size if span.end is None else _aligned(file, span.end)
    file.seek(start)
    return Member(io.BufferedReader(_Part(file, end - start)), str(span.path), start)


def _texts_in(path: Path, archived: Iterator[tuple[str, BinaryIO | None]]) -> Iterator[tuple[Member, str]]:
    """Those members of an archive that hold text or tables."""
    total, left_out = 0, []
    for inner, stream in archived:
        total += 1
        name, place = f"{inner} in {path}", PurePosixPath(inner)
        if stream is None or _is_hidden(inner):
            left_out.append(inner)
            continue
        buffered = io.BufferedReader(stream, HEAD)  # type: ignore[type-var]
        head, format = buffered.peek(HEAD), format_of(place)
        if not (foreign := _foreign(head, place)) and (_by_magic(head) or _packing_by_name(place)):
            raise UserError(f"{name} is packed once more; unpack {path} and give the folder")
        if foreign or (format == "text" and _is_binary(head)):
            left_out.append(inner)
            continue
        yield Member(buffered, name), format
    if len(left_out) == total:
        raise UserError(f"{path} holds no text file (.txt, .jsonl, .csv, …)")
    if left_out:
        _say_left_out(path, total, tuple(left_out[:3]), len(left_out))


@functools.cache  # an archive is read more than once
def _say_left_out(path: Path, total: int, some: tuple[str, ...], count: int) -> None:
    more = ", …" if count > len(some) else ""
    get_logger(__name__).warning(
        "%s: %d of %d members are hidden or aren't text and are left out (%s%s)",
        *(path, count, total, ", ".join(some), more),
    )


def _is_binary(head: bytes) -> bool:
    """Whether these are no text in any encoding; what may be one in another is refused, not left out."""
    if marked_encoding(head):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return control_share(head) + head.count(0) / len(head) > BINARY
    return control_share(head) > MOSTLY


def _zipped(file: BinaryIO, path: Path) -> Iterator[tuple[str, BinaryIO | None]]:
    with _says_if_broken(path, ".zip"):
        archive = zipfile.ZipFile(file)
    for info in sorted((i for i in archive.infolist() if not i.is_dir()), key=lambda i: i.filename):
        if info.flag_bits & 1:
            raise UserError(f"{path} is encrypted; unpack it with its password first")
        with _says_if_broken(path, ".zip"):
            member = archive.open(info)
        with member:
            yield info.filename, _Guarded(member, path, ".zip")  # type: ignore[misc]


def _tarred(file: BinaryIO, packing: str, path: Path) -> Iterator[tuple[str, BinaryIO | None]]:
    stream = _decompressed(file, packing.removeprefix(".tar"), path)
    with _says_if_broken(path, packing):
        archive = tarfile.open(fileobj=stream, mode="r|")  # noqa: SIM115
    while True:
        with _says_if_broken(path, packing):
            info = archive.next()
            member = archive.extractfile(info) if info is not None and info.isfile() else None
        if info is None:
            break
        if not info.isdir():
            yield info.name, None if member is None else _Guarded(member, path, packing)  # type: ignore[misc,arg-type]
        archive.members.clear()  # type: ignore[attr-defined]  # they would add up
    while stream.read(1 << 16):  # to the checksum at its end
        pass


def _decompressed(file: BinaryIO, packing: str, path: Path) -> BinaryIO:
    opened: Any = file
    if packing == ".gz":
        opened = gzip.GzipFile(fileobj=file)
    elif packing == ".bz2":
        opened = bz2.BZ2File(file)
    elif packing == ".xz":
        opened = lzma.LZMAFile(file)  # noqa: SIM115
    elif packing == ".zst":
        opened = _zstandard(path).open(file, "rb")
    return io.BufferedReader(_Guarded(opened, path, packing))


class _Guarded(io.RawIOBase):
    """A stream that is being unpacked; what is broken in it is told in one sentence."""

    def __init__(self, stream: Any, path: Path, packing: str) -> None:
        self.stream, self.path, self.packing = stream, path, packing

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _says_if_broken(self.path, self.packing):
            data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


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


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f"{path} needs the zstandard package: pip install 'craft-lm[zstd]', or unpack it"
        ) from None
    return zstandard


@contextmanager
def _says_if_broken(path: Path, packing: str) -> Iterator[None]:
    """Turns what the decompressors raise on broken data into one sentence."""
    broken: tuple[type[Exception], ...] = _BROKEN
    if packing.endswith(".zst"):
        broken = (*broken, _zstandard(path).ZstdError)
    try:
        yield
    except PermissionError:
        raise
    except broken as error:
        raise UserError(f"{path} can't be unpacked as {packing}: {error}; is it complete?") from None
