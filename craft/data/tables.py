"""Tables on the disk to texts: JSON lines, JSON, CSV and Parquet, each row's text column as it is written.

The general readers of `datasets` guess types: texts that look like dates become time stamps, `01` a number, a
number among texts makes all of them JSON. Here a text stays the text it is, and what isn't one is refused by
its line. Datasets of the Hub, whose types are declared, go through `datasets` (`hub_dataset.py`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from craft.data.reading import COMPRESSED, Span, members, not_utf8, read_text
from craft.utils.common import UserError, did_you_mean

ROWS = 1000  # rows of Parquet per read
# JSON objects may leave out what they don't have: a column is only missing if none of so many rows has it.
_SEARCHED = 10_000


def table_texts(span: Span, format: str, column: str, errors: str) -> Iterator[tuple[str, str]]:
    """(text, where) of every row whose text isn't null.

    Args:
        span: JSON lines may be read in part: the lines that start in it. Parquet in parts of row groups.
        format: `jsonl`, `json`, `csv` or `parquet`.
        errors: `strict` or `replace`, for invalid UTF-8 in all but Parquet.

    Raises:
        UserError: for a missing column, a value that isn't text, or a damaged file.
    """
    if format == "parquet":
        yield from _parquet(span, column)
    elif format == "csv":
        yield from _csv(span, column, errors)
    elif format == "json":
        yield from _json(span, column, errors)
    else:
        yield from _texts(_json_lines(span, errors), column, str(span.path), errors, bool(span.start))


def row_groups(span: Span) -> list[int]:
    """The size in bytes of each row group of a Parquet file."""
    with _parquet_file(span) as file:
        return [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]


def _texts(
    rows: Iterator[tuple[Any, str]], column: str, name: str, errors: str, known_column: bool = False
) -> Iterator[tuple[str, str]]:
    """The texts of JSON objects; `known_column`: that the column may be missing from all of them."""
    known = {column: None} if known_column else {}
    searched = 0
    for row, where in rows:
        if not isinstance(row, dict):
            raise UserError(f"{where} holds {_kind(row)} instead of an object with columns")
        if searched < _SEARCHED and column not in known:
            searched += 1
            known.update(dict.fromkeys(row))
            if searched == _SEARCHED and column not in known:
                break
        text = row.get(column)
        if text is not None:
            yield _encodable(_as_text(text, column, where), errors, where), where
    if searched and column not in known:
        raise missing_column(column, list(known), name)


def _json_lines(span: Span, errors: str) -> Iterator[tuple[Any, str]]:
    start, end = span.start, span.end
    for member in members(span._replace(start=0, end=None)):
        stream, position, number = member.stream, 0, 0
        if start:  # a line belongs to the part that it starts in
            stream.seek(start - 1)
            position = start - 1 + len(stream.readline())
        while end is None or position < end:
            line = stream.readline()
            if not line:
                break
            number += 1
            where = f"line {number} {f'behind byte {start} ' if start else ''}of {member.name}"
            text = _decoded(line, errors, member.name, position)
            position += len(line)
            if text.strip():
                yield _parsed(text, where), where


def _json(span: Span, column: str, errors: str) -> Iterator[tuple[str, str]]:
    """A list of objects; an object of columns; or JSON lines under another name."""
    name = str(span.path)
    first = next(_first_lines(span, errors), "").lstrip("\ufeff \t\r\n")
    if isinstance(row := _or_none(first), dict) and not isinstance(row.get(column), list):
        yield from _texts(_json_lines(span, errors), column, name, errors)
        return
    value = _parsed("".join(read_text(span, errors)) or "[]", name)
    if isinstance(value, dict) and isinstance(value.get(column), list):
        value = [{column: text} for text in value[column]]
    rows = value if isinstance(value, list) else [value]
    yield from _texts(((row, f"row {i} of {name}") for i, row in enumerate(rows)), column, name, errors)


def _first_lines(span: Span, errors: str) -> Iterator[str]:
    for member in members(span):
        for line in member.stream:
            if line.strip():
                yield _decoded(line, errors, member.name, 0)


def _csv(span: Span, column: str, errors: str) -> Iterator[tuple[str, str]]:
    csv.field_size_limit(2**31 - 1)
    name = str(span.path)
    reader = csv.reader(_lines(read_text(span, errors)), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        header = [header[0].removeprefix("\ufeff"), *header[1:]] if header else []
        if column not in header:
            raise missing_column(column, header, name)
        place = header.index(column)
        for row in reader:
            where = f"line {reader.line_num} of {name}"
            if len(row) > len(header):
                raise UserError(
                    f"{where} has {len(row)} fields where the header has {len(header)}; put texts with "
                    'commas in double quotes ("), and write a quote inside as two'
                )
            if len(row) > place:
                yield row[place], where
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {name} isn't CSV: {error}") from None


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    """The lines of a text with their ends, of whichever kind."""
    rest = ""
    for text in pieces:
        lines = io.StringIO(rest + text, newline="").readlines()
        rest = lines.pop()  # may go on in the next piece, even behind a carriage return
        yield from lines
    yield from io.StringIO(rest, newline="")


def _parquet(span: Span, column: str) -> Iterator[tuple[str, str]]:
    import pyarrow

    name = str(span.path)
    with _parquet_file(span) as file:
        if column not in file.schema_arrow.names:
            raise missing_column(column, file.schema_arrow.names, name)
        groups = range(span.start, file.metadata.num_row_groups if span.end is None else span.end)
        row = sum(file.metadata.row_group(i).num_rows for i in range(span.start))
        place = file.schema_arrow.names.index(column)
        try:
            for batch in file.iter_batches(ROWS, row_groups=list(groups), columns=[column]):
                if not batch.num_columns:  # a column of another name that the dots of this one lead to
                    raise UserError(f"column {column!r} of {name} holds {file.schema_arrow.types[place]}")
                for text in batch.column(0).to_pylist():
                    if text is not None:
                        yield _as_text(text, column, f"row {row} of {name}"), f"row {row} of {name}"
                    row += 1
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name} can't be read near row {row}: {str(error).splitlines()[0]}") from None


def _parquet_file(span: Span) -> Any:
    import pyarrow
    import pyarrow.parquet

    if span.suffix in COMPRESSED:
        raise UserError(f"{span.path} is a compressed Parquet file; unpack it (Parquet compresses by itself)")
    for member in members(span._replace(start=0, end=None)):
        member.stream.close()  # it can be read, and isn't a pipe
    try:
        return pyarrow.parquet.ParquetFile(span.path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{span.path} isn't a whole Parquet file: {str(error).splitlines()[0]}") from None


def _decoded(line: bytes, errors: str, name: str, position: int) -> str:
    try:
        text = line.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise UserError(not_utf8(name, error, position)) from None
    return text if position else text.removeprefix("\ufeff")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} isn't JSON: {error}") from None


def _or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _as_text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(
            f"{where}: column {column!r} holds {_kind(value)}, not text; choose another data.text_column"
        )
    return value


def _encodable(text: str, errors: str, where: str) -> str:
    """The text, whose escapes may stand for half a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if errors == "replace":
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        raise UserError(
            f"{where} holds the unpaired surrogate U+{ord(text[error.start]):04X}, which isn't a character; "
            "correct it, or read it with data.errors=replace"
        ) from None
    return text


def _kind(value: Any) -> str:
    kinds = {bool: "a truth value", dict: "an object", list: "a list", bytes: "bytes", type(None): "null"}
    return kinds.get(type(value)) or f"{type(value).__name__} {value!r}"


def missing_column(column: str, columns: list[str], name: str) -> UserError:
    """The error of a table without the text column."""
    return UserError(
        f"data.text_column={column!r} isn't among the columns of {name} ({', '.join(columns)})"
        f"{did_you_mean(column, columns) or '; name the one with the text: data.text_column=NAME'}"
    )
