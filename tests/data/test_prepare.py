"""Two passes of constant memory, remembered until the text changes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

import craft.data.sources as sources
import craft.utils.files as files
from craft.data.cache import Cache
from craft.data.prepare import count_characters, encoded, ids, scan
from craft.data.sources import Files, Piece
from craft.data.tokenization import ByteTokenizer, CharTokenizer

TEXT = "naïve café\r\n世界 👩‍👩‍👧\0" * 50


def file_source(path: Path, text: str | None = None) -> Files:
    if text is not None:
        path.write_bytes(text.encode())
    return Files([path])


class Documents:
    """A source of documents in memory."""

    documents = True

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def pieces(self):  # type: ignore[no-untyped-def]
        return (Piece(text, f"row {i}", 0) for i, text in enumerate(self.texts))

    def signature(self) -> list[str]:
        return list(self.texts)


def test_scan_counts_what_python_counts(tmp_path: Path) -> None:
    found = scan(file_source(tmp_path / "a.txt", TEXT), Cache())
    assert found.counts == dict(Counter(TEXT))
    assert list(found.counts) == sorted(found.counts)
    assert count_characters(iter([TEXT, "abc"])) == dict(sorted(Counter(TEXT + "abc").items()))


def test_ids_are_those_of_the_tokenizer_and_come_as_a_memory_map(tmp_path: Path) -> None:
    source = file_source(tmp_path / "a.txt", TEXT)
    for tokenizer in (CharTokenizer.train([TEXT]), ByteTokenizer.create()):
        array = ids(source, scan(source, Cache()), tokenizer, Cache())
        assert isinstance(array, np.memmap)
        assert array.tolist() == tokenizer(TEXT).input_ids
        assert array.dtype == tokenizer.processor.dtype


def test_documents_end_with_eos_and_their_boundaries_are_part_of_the_content(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = CharTokenizer.train(["abc"])
    a, b, c = tokenizer.encode("abc")
    for piece in (1, 2, 1 << 20):
        monkeypatch.setattr("craft.data.prepare.PIECE", piece)
        assert np.concatenate(list(encoded(Documents("ab", "", "c").pieces(), True, tokenizer))).tolist() == [
            a,
            b,
            2,
            2,
            c,
            2,
        ]
    one, two = scan(Documents("ab", "c"), Cache()), scan(Documents("a", "bc"), Cache())
    assert one.counts == two.counts
    assert one.sha256 != two.sha256


def test_a_second_run_reads_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = file_source(tmp_path / "a.txt", TEXT)
    tokenizer = CharTokenizer.train([TEXT])
    first = ids(source, scan(source, Cache()), tokenizer, Cache())

    def no_reading(*args: object) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr(sources, "decoded", no_reading)
    source = file_source(tmp_path / "a.txt")
    again = ids(source, scan(source, Cache()), tokenizer, Cache())
    assert again.tolist() == first.tolist()
    other = CharTokenizer.train([TEXT], unknown="unk")
    with pytest.raises(AssertionError, match="read again"):
        ids(source, scan(source, Cache()), other, Cache())


def test_an_edit_that_restores_size_and_time_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    before = scan(file_source(path, "aaaa"), Cache())
    stat = path.stat()
    path.write_bytes(b"bbbb")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    after = scan(file_source(path), Cache())
    assert after.counts == {"b": 4}
    assert after.sha256 != before.sha256


def test_edits_in_quick_succession_are_all_noticed(tmp_path: Path) -> None:
    """A kernel's clock ticks every few milliseconds: two edits within a tick have equal times."""
    path = tmp_path / "a.txt"
    for i in range(10):
        text = f"{i:04}"
        assert scan(file_source(path, text), Cache()).counts == dict(Counter(text))


def test_a_signature_is_only_taken_of_a_file_older_than_a_tick(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    signature = files.file_signature(path)
    assert time.time_ns() - path.stat().st_ctime_ns >= files.TICK_NS
    assert signature == files.file_signature(path)


def test_equal_content_under_another_name_shares_its_ids(tmp_path: Path, cache: Path) -> None:
    tokenizer = CharTokenizer.train([TEXT])
    for name in ("a.txt", "b.txt"):
        source = file_source(tmp_path / name, TEXT)
        ids(source, scan(source, Cache()), tokenizer, Cache())
    assert len(list(cache.glob("ids-*"))) == 1
    assert len(list(cache.glob("counts-*"))) == 2


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.txt"

    class Growing(Files):
        def pieces(self):  # type: ignore[no-untyped-def]
            yield from super().pieces()
            with path.open("a") as file:
                file.write("more")

    path.write_text("text")
    with refused("text-changed"):
        scan(Growing([path]), Cache())
    assert list(cache.glob("counts-*")) == []


def test_a_given_alphabet_refuses_a_file_by_name_and_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft.data.reading.PIECE", 100)
    source = file_source(tmp_path / "poem.txt", "é" * 120 + "x")
    with refused("character-unknown", "'x'", "U+0078", "position 120 ", tmp_path / "poem.txt"):
        ids(source, scan(source, Cache()), CharTokenizer.train(["é"]), Cache())


MEASURE = """
import resource, sys
from pathlib import Path
from craft.data.cache import Cache
from craft.data.prepare import ids, scan
from craft.data.sources import Files
from craft.data.tokenization import CharTokenizer
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = Files([Path(sys.argv[1])])
found = scan(source, Cache())
array = ids(source, found, CharTokenizer.from_counts(found.counts), Cache())
print(len(array), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    line = "The quick brown fox jumps over the lazy dög. 世界\n".encode()
    path = tmp_path / "big.txt"
    with path.open("wb") as file:
        for _ in range(200):
            file.write(line * (1_000_000 // len(line)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    characters, kilobytes = map(int, done.stdout.split())
    assert characters == path.stat().st_size // len(line) * len(line.decode())
    assert kilobytes < 100_000  # for 200 MB of text: tables and a few pieces of a megabyte
