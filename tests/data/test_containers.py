"""How a file is packed is seen from its content, and archives are read member by member."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from refusals import refused

from craft.data.arguments import DataArguments
from craft.data.containers import is_text
from craft.data.finding import find_source
from craft.utils.errors import Code

Members = dict[str, bytes]


def tar(members: Members) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return data.getvalue()


def zipped(members: Members) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


ARCHIVES: dict[str, Callable[[Members], bytes]] = {
    "a.zip": zipped,
    "a.tar": tar,
    "a.tar.gz": lambda members: gzip.compress(tar(members)),
    "A.TGZ": lambda members: gzip.compress(tar(members)),
    "a.tar.bz2": lambda members: bz2.compress(tar(members)),
    "a.txz": lambda members: lzma.compress(tar(members)),
    "a.tar.zst": lambda members: zst(tar(members)),
    "zip-named.txt": zipped,
    "tar-in-gzip-named.gz": lambda members: gzip.compress(tar(members)),
    "tar-in-gzip-named.txt": lambda members: gzip.compress(tar(members)),
}
HIDDEN = {
    ".DS_Store": b"\0\0\0\1Bud1",
    "__MACOSX/._a.txt": b"\0\5\x16\7",
    "photo.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "deep/.git/config": b"[core]",
}


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def texts(path: str, **fields: Any) -> list[str]:
    source = find_source(DataArguments(path=path, **fields))
    found = [piece.text for piece in source.pieces()]
    streamed = [piece.text for shard in source.shards(1 << 20) for piece in shard.pieces()]
    assert streamed == found
    return found


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_known_by_their_content_and_files_that_are_not_text_left_out(
    name: str, tmp_path: Path
) -> None:
    members = {**HIDDEN, "a.txt": "née\r\n".encode(), "../b.md": b"second\n", "empty.txt": b""}
    path = write(tmp_path / name, ARCHIVES[name](members))
    in_order = ["second\n", "née\r\n"] if ARCHIVES[name] is zipped else ["née\r\n", "second\n"]
    assert texts(path) == in_order
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize(
    ("suffix", "first", "second"),
    [
        ("csv", b"n,text\n1,one\n", b"text,n\ntwo,2\n"),
        ("tsv", b"n\ttext\n1\tone\n", b"text\tn\ntwo\t2\n"),
        ("ndjson", b'{"text": "one"}', b'{"text": "two"}\n'),
        ("json", b'[{"text": "one"}]', b'{"text": "two"}'),
    ],
)
def test_tables_in_archives_are_tables_each_with_its_own_header(
    name: str, suffix: str, first: bytes, second: bytes, tmp_path: Path
) -> None:
    members = {**HIDDEN, f"1.{suffix}": first, f"2.{suffix.upper()}": second}
    assert texts(write(tmp_path / name, ARCHIVES[name](members))) == ["one", "two"]


def test_members_that_are_left_out_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts(write(tmp_path / "a.zip", zipped({**HIDDEN, "a.txt": b"text"})))
    (record,) = caplog.records
    assert all(word in record.getMessage() for word in ("a.zip", "4 of 5", ".DS_Store"))


@pytest.mark.parametrize(
    ("members", "code", "named"),
    [
        ({"a.txt": b"text", "b.zip": zipped({"c.txt": b"text"})}, "text-format", "b.zip"),
        ({"a.txt": b"text", "b.txt": gzip.compress(b"text", mtime=0)}, "text-format", "b.txt"),
        ({"a.txt": b"text", "b.csv": b"text\nx\n"}, "text-format", "b.csv"),
        ({"a.txt": "Größe".encode("latin-1")}, "text-missing", ""),
        ({"a.parquet": b"PAR1"}, "text-format", ""),
        (HIDDEN, "text-missing", ""),
        ({}, "text-missing", ""),
    ],
    ids=["nested", "compressed", "mixed", "encoding", "parquet", "nothing", "empty"],
)
@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_archives_that_cannot_be_read_are_refused_by_name(
    name: str, members: Members, code: Code, named: str, tmp_path: Path
) -> None:
    with refused(code, name, named):
        texts(write(tmp_path / name, ARCHIVES[name](members)))


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a.7z", b"7z\xbc\xaf\x27\x1c"),
        ("a.rar", b"Rar!\x1a\7\1\0"),
        ("a.pdf", b"%PDF-1.7\n"),
        ("a.txt", b"%PDF-1.7\n"),
        ("a.png", b"\x89PNG\r\n\x1a\n"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
        ("a.docx", zipped({"word/document.xml": b"<w/>"})),
        ("a.zip", zipped({"[Content_Types].xml": b"<t/>"})),
        ("a.EPUB", zipped({"mimetype": b"application/epub+zip"})),
    ],
)
def test_documents_and_other_archives_are_refused_by_name_and_left_out_of_folders(
    name: str, start: bytes, tmp_path: Path
) -> None:
    data = start + bytes(100)
    path = write(tmp_path / name, data)
    for errors in ("strict", "replace"):
        with refused("text-format", path):
            texts(path, errors=errors)
    assert not is_text(data, Path(path), "utf-8")


@pytest.mark.parametrize(
    ("name", "pack"), [("a.csv.gz", gzip.compress), ("a.CSV.ZST", zst), ("a.csv", gzip.compress)]
)
def test_a_compressed_table_is_read_as_a_table(
    name: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    assert texts(write(tmp_path / name, pack(b"n,text\n1,one\n"))) == ["one"]


def test_texts_that_begin_like_another_format_are_texts(tmp_path: Path) -> None:
    for text in ("BZh9 is how bzip2 begins\n", "PK\n", "Rar!\n", "x" * 257 + "ustar" + "x" * 300):
        assert "".join(texts(write(tmp_path / "a.txt", text.encode()))) == text


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.zst"])
def test_a_tar_archive_cut_short_or_damaged_is_refused(name: str, tmp_path: Path) -> None:
    data = ARCHIVES[name]({"a.txt": os.urandom(300_000).hex().encode()})
    with refused("text-format", tmp_path / name):
        texts(write(tmp_path / name, data[: len(data) // 2]))


def test_a_large_archive_is_read_in_little_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar.gz", gzip.compress(tar({"a.txt": bytes(50_000_000)}), 1))
    source = find_source(DataArguments(path=path))
    tracemalloc.start()
    try:
        assert sum(len(piece.text) for piece in source.pieces()) == 50_000_000
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
