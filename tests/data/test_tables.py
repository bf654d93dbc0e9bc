"""Tables: every text as it is written, and what isn't one refused by its line."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused

import craft.data.reading as reading
from craft.data.arguments import DataArguments
from craft.data.finding import find_source
from craft.data.sources import Source
from craft.utils.errors import Code

NUL = "\0" if sys.version_info >= (3, 11) else "x"
"""Python 3.10's csv refuses it, which is told as any other fault of a file."""

ARROW = {
    "string": pa.array(["one", None, ""]),
    "large_string": pa.array(["one", None, ""], pa.large_string()),
    "string_view": pa.array(["one", None, ""], pa.string_view()),
    "dictionary": pa.array(["one", None, ""]).dictionary_encode(),
}


def source(path: Path, content: Any, **fields: Any) -> Source:
    if isinstance(content, pa.Array):
        pyarrow.parquet.write_table(pa.table({"n": range(len(content)), "text": content}), path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return find_source(DataArguments(path=str(path), **fields))


def packed(content: bytes) -> bytes:
    """A gzip member without the time of day, for it becomes a part of the test's name."""
    return gzip.compress(content, mtime=0)


def texts(found: Source) -> list[str]:
    return [piece.text for piece in found.pieces()]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"text":"one\\r\\n"}\n\n{"text":"\\ud83d\\ude80"}', ["one\r\n", "🚀"]),
        ("a.jsonl", '{"text":null}\n{"x":3}\n{"text":""}\n{"text":"a","x":[1]}\n', ["", "a"]),
        ("a.jsonl", '\ufeff{"text":"2020-01-01"}\r\n{"text":"01"}\r\n', ["2020-01-01", "01"]),
        ("a.jsonl", '{"text":"a\\u0000b<eos>"}\n', ["a\0b<eos>"]),
        (
            "a.jsonl.gz",
            packed(b'{"text":"one"}\n') + packed(b'{"text":"two"}\n'),
            ["one", "two"],
        ),
        ("a.jsonl", "", []),
        ("a.json", '[{"text":"one"},\n {"text":"two"}]', ["one", "two"]),
        ("a.json", '{"text":"one"}\n{"text":"two"}\n', ["one", "two"]),
        ("a.json", "", []),
        ("a.csv", 'text,n\r\n"a\r\nb",1\r\n"c""d, ",2\r\n', ["a\r\nb", 'c"d, ']),
        ("a.csv", "n,text\n1,NA\n2,null\n\n3, x \n4,\n5\n", ["NA", "null", " x ", ""]),
        ("a.csv", "\ufefftext\r01\r1.50\rTrue", ["01", "1.50", "True"]),
        ("a.csv", f'text\n"a\rb"\n"{NUL}"\n', ["a\rb", NUL]),
        ("a.csv", "text\n" + "x" * 3_000_000, ["x" * 3_000_000]),
        ("a.csv.gz", packed(b"text\none\n"), ["one"]),
        ("a.csv", "", []),
        ("a.csv", '\ufeff"text","n"\r\n"row ""two""","1"\r\n', ['row "two"']),
        ("a.csv", "text,n\né,1\n".encode("utf-16"), ["é"]),
        ("a.tsv", 'n\ttext\r\n1\t"a\tb"\r\n2\tit\'s, "x"\r\n', ["a\tb", 'it\'s, "x"']),
        ("a.tsv", '\ufeff"text"\tn\r\né😀\t1\r\n'.encode("utf-16-le"), ["é😀"]),
        ("a.ndjson", '\ufeff{"text":"one"}\n\n{"text":"two"}\n', ["one", "two"]),
        ("a.jsonl", '{"text":"é"}\r\n{"text":"😀"}'.encode("utf-16"), ["é", "😀"]),
        ("a.json", '\ufeff\n[{"text":"one"}]', ["one"]),
        ("a.json", '\ufeff{"text":"one"}\n{"text":"two"}\n', ["one", "two"]),
        ("a.json", '[{"text":"é"}]'.encode("utf-32"), ["é"]),
        ("a.csv", "text\n", []),
        *(("a.parquet", array, ["one", ""]) for array in ARROW.values()),
        ("a.parquet", pa.array([], pa.string()), []),
        ("a.parquet", pa.nulls(3), []),
    ],
)
def test_texts_come_as_they_are_written(name: str, content: Any, expected: list[str], tmp_path: Path) -> None:
    found = source(tmp_path / name, content)
    assert texts(found) == expected
    assert [piece.text for shard in found.shards(1) for piece in shard.pieces()] == expected


@pytest.mark.parametrize(
    ("name", "content", "code", "values"),
    [
        ("a.jsonl", '{"text":"a"}\n{"text":2}\n', "text-column", ["line 2 ", "text_column=text", "2"]),
        ("a.jsonl", '{"text":{"a":1}}', "text-column", ["line 1 ", "text.a"]),
        ("a.jsonl", '{"text":["a"]}', "text-column", ["line 1 ", "text[]"]),
        ("a.jsonl", '"text"', "text-format", ["line 1 ", "'text'"]),
        ("a.jsonl", '{"text":"a"}\n{"text":', "text-format", ["line 2 "]),
        ("a.jsonl", "[" * 100_000, "text-format", []),
        ("a.jsonl", '{"txt":"a"}\n', "text-column", ["'text'", "txt", "'txt'"]),
        ("a.jsonl", '{"x":1}\n' * 10_001, "text-column", ["'text'", "x"]),
        ("a.jsonl", b'{"text":"a"}\n{"text":"\xff"}', "text-encoding", ["byte 22 ", "0xff"]),
        ("a.jsonl", '{"text":"a\\ud83d"}', "text-encoding", ["line 1 ", "U+D83D"]),
        ("a.json", '[{"text":1}]', "text-column", ["row 0 ", "1"]),
        ("a.json", "[1, 2", "text-format", []),
        ("a.json", '{"text":["a"]}', "text-column", ["line 1 ", "text[]"]),
        ("a.csv", "text;n\na;1\n", "text-column", ["'text'", "text;n"]),
        ("a.csv", "text,n\na,1\nb, c,1\n", "text-format", ["line 3 "]),
        ("a.csv", 'text\n"a\n', "text-format", ["line 2 "]),
        ("a.csv", "text\ncaf\xe9".encode("latin-1"), "text-encoding", ["byte 8 "]),
        ("a.parquet", pa.array([1, 2]), "text-column", ["row 0 ", "1"]),
        ("a.parquet", pa.array([b"a"]), "text-column", ["row 0 ", "b'a'"]),
        ("a.parquet", b"PAR1 cut short", "text-format", []),
        ("a.parquet", b"", "text-format", []),
        ("a.parquet.gz", packed(b"PAR1"), "text-format", []),
    ],
)
def test_rows_without_text_are_refused_by_their_place(
    name: str, content: Any, code: Code, values: list[str], tmp_path: Path
) -> None:
    with refused(code, tmp_path / name, *values) as caught:
        texts(source(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_with_errors_replace_invalid_bytes_of_tables_are_read(tmp_path: Path) -> None:
    assert texts(source(tmp_path / "a.jsonl", b'{"text":"\xff"}', errors="replace")) == ["\ufffd"]
    assert texts(source(tmp_path / "b.jsonl", '{"text":"\\ud83d x"}', errors="replace")) == ["\ufffd x"]
    assert texts(source(tmp_path / "c.csv", b"text\n\xff", errors="replace")) == ["\ufffd"]


def test_files_may_differ_in_their_other_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "b.jsonl").write_text("")
    (tmp_path / "c.jsonl").write_text('{"id": 1, "text": "two"}\n')
    assert texts(find_source(DataArguments(path=str(tmp_path)))) == ["one", "two"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.text(st.sampled_from('aé世,"\r\n' + NUL)), max_size=20), size=st.integers(1, 60))
def test_shards_are_the_rows_in_order(
    rows: list[str], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE", 5)
    lines = "".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows)
    table = 'text\n"' + '"\n"'.join(row.replace('"', '""') for row in rows) + '"\n' if rows else "text\n"
    pyarrow.parquet.write_table(
        pa.table({"text": pa.array(rows, pa.string())}), tmp_path / "c.parquet", row_group_size=3
    )
    parquet = (tmp_path / "c.parquet").read_bytes()
    for name, content in (("a.jsonl", lines), ("b.csv", table), ("c.parquet", parquet)):
        found = source(tmp_path / name, content)
        shards = found.shards(size)
        assert [piece.text for shard in shards for piece in shard.pieces()] == texts(found) == rows
        if name == "a.jsonl":
            assert sum(shard.size for shard in shards) == len(lines.encode())
            assert all(shard.size >= size for shard in shards[:-1])


CHAT = [
    {
        "id": 1,
        "messages": [{"role": "user", "content": "hi"}, {"role": "bot", "content": "you"}],
        "tags": [],
    },
    {"id": 2, "messages": [{"role": "user", "content": None}], "tags": ["a", "b"]},
    {"id": 3, "messages": [], "tags": None},
    {"id": 4, "messages": [{"role": "bot", "content": "end"}], "meta": {"title": {"en": "T"}}},
]


def chat(path: Path) -> Path:
    """The rows of `CHAT` in the format that the name says."""
    lines = [json.dumps(row) for row in CHAT]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(CHAT), path, row_group_size=2)
    else:
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_nested_texts_are_lines_of_their_row(name: str, tmp_path: Path) -> None:
    def column(path: str) -> list[str]:
        found = find_source(DataArguments(path=str(file), text_column=path))
        assert [piece.text for shard in found.shards(1 << 20) for piece in shard.pieces()] == texts(found)
        return texts(found)

    file = chat(tmp_path / name)
    assert column("messages[].content") == ["hi\nyou", "end"]
    assert column("tags[]") == ["a\nb"]
    if name != "a.parquet":  # whose rows have every key
        assert column("meta.title.en") == ["T"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    ("column", "named"),
    [
        ("messages", ["messages[].role", "messages[].content"]),
        ("messages.content", ["messages[].role", "'messages[].content'"]),
        ("messages[].contant", ["messages[].role", "'messages[].content'"]),
        ("mesages[].content", ["messages"]),
        ("id[]", ["id"]),
        ("id.x", ["id"]),
        ("messages[0].content", ["'messages[].content'"]),
        (".", ["messages"]),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_with_what_is_there(
    name: str, column: str, named: list[str], tmp_path: Path
) -> None:
    with refused("text-column", tmp_path / name, column, *named):
        texts(find_source(DataArguments(path=str(chat(tmp_path / name)), text_column=column)))


def test_a_column_whose_own_name_looks_like_a_path_is_that_column(tmp_path: Path) -> None:
    content = '{"a.b[]": "own", "a": {"b": ["nested"]}}\n'
    assert texts(source(tmp_path / "a.jsonl", content, text_column="a.b[]")) == ["own"]
    (tmp_path / "a.csv").write_text("a.b,n\nown,1\n")
    assert texts(find_source(DataArguments(path=str(tmp_path / "a.csv"), text_column="a.b"))) == ["own"]


def test_tables_are_read_in_their_encoding(tmp_path: Path) -> None:
    for name, content in (
        ("a.csv", 'text,n\r\n"表\r\nソ",1\r\n'),
        ("a.tsv", 'text\tn\r\n"表\r\nソ"\t1\r\n'),
        ("a.jsonl", '{"text":"表\\r\\nソ"}\n'),
        ("a.json", '[{"text":"表\\r\\nソ"}]'),
    ):
        found = source(tmp_path / name, content.encode("shift_jis"), encoding="shift_jis")
        assert texts(found) == ["表\r\nソ"]
        assert [piece.text for shard in found.shards(1) for piece in shard.pieces()] == ["表\r\nソ"]
