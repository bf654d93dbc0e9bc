"""Text comes through as it lies in the file, or the file is refused with a reason."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from refusals import refused

import craft.data.reading as reading
from craft.data.arguments import DataArguments
from craft.data.containers import Span, is_foreign, is_text, packing_of
from craft.data.finding import find_source
from craft.data.sources import Files

EXACT = "\ufeffa\r\nb\rc\n\0\t \u2028\u2029\u0085e\u0301é👩‍👩‍👧\U0010ffff\x1b[0m\n\n"
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".txt": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def read(path: Path, errors: str = "strict", *spans: Span) -> str:
    return "".join(piece.text for piece in Files([path], errors=errors)._pieces([*spans] or [Span(path)]))


@pytest.mark.parametrize("suffix", list(PACK))
@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 20])
def test_text_is_exact_whatever_the_size_of_reads(
    suffix: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE", piece)
    file = tmp_path / f"text{suffix}"
    file.write_bytes(PACK[suffix](EXACT.encode()))
    assert read(file) == EXACT


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips(text: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(text.encode())
    assert read(file) == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=50), piece=st.integers(1, 9))
@example(data=b"\xff\xfe\0\0", piece=4)
def test_any_bytes_are_read_as_python_reads_them_or_refused_where_python_refuses(
    data: bytes, piece: int, tmp_path: Path
) -> None:
    file = tmp_path / "data"
    assume(not packing_of(data) and not is_foreign(data, file))
    file.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECE", piece)
        assert read(file, "replace") == data.decode("utf-8", "replace")
        fault = first_fault(data)
        if fault is None:
            assert read(file) == data.decode("utf-8")
            return
        with refused("text-encoding", f"byte {fault} "):
            read(file)


def first_fault(data: bytes) -> int | None:
    """Where Python's decoder stops."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


def test_the_files_of_a_zip_archive_are_joined_in_order_of_name(tmp_path: Path) -> None:
    file = tmp_path / "text.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.txt", "second é")
        archive.writestr("folder/", "")
        archive.writestr("a.txt", "first ")
    assert read(file) == "first second é"


def test_files_that_macos_adds_to_an_archive_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "texts.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text")
        archive.writestr("__MACOSX/._a.txt", b"\x00\x05\x16\x07\xff")
        archive.writestr("../outside.txt", "never unpacked, only read ")
    assert read(file) == "never unpacked, only read text"
    assert not (tmp_path.parent / "outside.txt").exists()
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("photo.jpg", b"\xff\xd8\xff\xe0" + bytes(32))
    assert read(file) == "never unpacked, only read text"
    data = bytearray(file.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + flags] |= 1
    file.write_bytes(data)
    with refused("text-format", file, "encrypted"):
        read(file)


@pytest.mark.parametrize("suffix", list(PACK))
def test_compressed_parts_may_be_cut_inside_a_character(suffix: str, tmp_path: Path) -> None:
    whole, cut = "née".encode(), 2
    file = tmp_path / f"text{suffix}"
    file.write_bytes(PACK[suffix](whole[:cut]) + PACK[suffix](whole[cut:]))
    assert read(file) == "née"


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with refused("file-unreadable", tmp_path / "pipe.txt"):
        read(tmp_path / "pipe.txt")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.sampled_from("aé世👩\r\n")), cuts=st.lists(st.integers(0, 200)))
def test_parts_of_a_file_join_without_a_seam(text: str, cuts: list[int], tmp_path: Path) -> None:
    file = tmp_path / "parts.txt"
    file.write_bytes(text.encode())
    size = len(text.encode())
    borders = sorted({0, *(cut % (size + 1) for cut in cuts)})
    spans = [Span(file, a, b) for a, b in zip(borders, [*borders[1:], None])]
    assert read(file, "strict", *spans) == text


def test_an_error_in_a_part_is_placed_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "parts.txt"
    file.write_bytes(b"x" * 50 + b"\xe9" + b"x" * 50)
    with refused("text-encoding", file, "byte 50 ", "0xe9"):
        read(file, "strict", Span(file, 40, 80))
    with refused("text-changed", file):
        read(file, "replace", Span(file, 60, 200))


def test_bytes_that_are_not_utf8_are_named_with_encodings_they_may_be_of(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(("x" * 100).encode() + "é".encode("latin-1") + b"more text")
    with refused("text-encoding", latin, "byte 100 ", "0xe9", "data.encoding=cp1252", "data.errors=replace"):
        read(latin)
    assert read(latin, "replace") == "x" * 100 + "\ufffdmore text"
    for encoding in ("utf-16", "utf-32"):
        latin.write_bytes("wide".encode(encoding))
        with refused("text-encoding", latin, f"data.encoding={encoding}"):
            read(latin)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_that_happens_to_be_valid_utf8_is_refused(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(("plain English words. " * 20).encode(encoding))
    with refused("text-encoding", file, f"data.encoding={encoding} "):
        read(file)
    assert len(read(file, "replace")) == 2 * 420


def test_nul_characters_do_not_make_a_text_binary(tmp_path: Path) -> None:
    file = tmp_path / "nul.txt"
    data = b"\0" * 1000 + b"text"
    file.write_bytes(data)
    assert read(file) == data.decode()
    assert is_text(data, file, "utf-8")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst", ".zip"])
def test_a_name_does_not_make_a_file_packed(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"plain{suffix}"
    file.write_bytes(b"this is no archive at all")
    assert read(file) == "this is no archive at all"


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_compressed_files_cut_short_or_damaged_are_refused(suffix: str, tmp_path: Path) -> None:
    file, data = tmp_path / f"half{suffix}", PACK[suffix](os.urandom(50_000).hex().encode())
    for broken in (data[:-1000], data[:9_000] + bytes(100) + data[9_100:]):
        file.write_bytes(broken)
        with refused("text-format", file):
            read(file)


def test_zstandard_is_optional_and_missed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "text.zst"
    file.write_bytes(PACK[".zst"](b"abc"))
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with refused("package-missing", file, "craft-lm[zstd]"):
        read(file)


WRITTEN = {
    "cp1252": "“quoted” – it’s…\r\n€\r",
    "shift_jis": "日本語、テスト\n\r\nｱｲｳ ソ表",
    "gb18030": "中文😀 test\r\n€",
    "euc_kr": "한국어\n",
    "iso2022_jp": "日本語\nabc\n",
    "utf-16": "a😀é\r\n\x85",
    "utf-16-le": "\ufeffa😀\n",
    "utf-32": "a😀\r",
    "utf-8-sig": "née\n",
    "utf-7": "née 日\n",
}


@pytest.mark.parametrize("encoding", WRITTEN)
@pytest.mark.parametrize("piece", [1, 2, 3, 7])
def test_any_encoding_is_exact_whatever_the_size_of_reads(
    encoding: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE", piece)
    text = WRITTEN[encoding] * 5
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode(encoding))
    source = find_source(DataArguments(path=str(file), encoding=encoding))
    assert "".join(p.text for p in source.pieces()) == text
    assert "".join(p.text for shard in source.shards(1) for p in shard.pieces()) == text


def test_the_encoding_is_a_part_of_the_signature_only_where_it_is_another(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"text")
    signatures = [
        find_source(DataArguments(path=str(file), encoding=encoding)).signature()
        for encoding in (None, "UTF8", "cp1252", "windows-1252")
    ]
    assert signatures[0] == signatures[1]
    assert signatures[2] == signatures[3] != signatures[0]


def test_a_folder_is_read_in_its_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("“a”".encode("cp1252"))
    (tmp_path / "b.bin").write_bytes(bytes(range(256)) * 8)
    source = find_source(DataArguments(path=str(tmp_path), encoding="cp1252"))
    assert [piece.text for piece in source.pieces()] == ["“a”"]


@pytest.mark.parametrize(
    ("data", "encoding", "values"),
    [
        ("日本".encode("shift_jis") + b"\xff", "shift_jis", ["byte 4 ", "0xff"]),
        ("He said “hello”\n".encode("cp1252"), None, ["data.encoding=cp1252"]),
        ("日本語のテスト、表示\n".encode("shift_jis") * 9, None, ["data.encoding=shift_jis"]),
        ("中文文本测试，这里有很多字。\n".encode("gb18030") * 9, None, ["data.encoding=gb18030"]),
        ("Привет, мир. Как дела?\n".encode("cp1251") * 9, None, ["data.encoding=cp1251"]),
    ],
)
def test_bytes_that_are_not_of_the_encoding_are_refused(
    data: bytes, encoding: str | None, values: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(data)
    with refused("text-encoding", file, *values):
        list(find_source(DataArguments(path=str(file), encoding=encoding)).pieces())
