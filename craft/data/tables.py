"""Tables on the disk to texts: JSON lines, JSON, CSV, TSV and Parquet, each row's text as it is written.

The general readers of `datasets` guess types: texts that look like dates become time stamps, `01` a number, a
number among texts makes all of them JSON. Here a text stays the text it is, and what isn't one is refused by
its line. Datasets of the Hub, whose types are declared, go through `datasets` (`hub_dataset.py`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from craft.data.columns import Column, column_texts, missing_column
from craft.data.containers import Member, Span, marked_encoding, members
from craft.data.reading import decoded, undecodable
from craft.utils.errors import UserError

ROWS = 1000  # rows of Parquet per read
BOM = "\ufeff"
_DELIMITERS = {"csv": ",", "tsv": "\t"}


def table_texts(
    span: Span, format: str, column: str, errors: str, encoding: str = "utf-8"
) -> Iterator[tuple[str, str]]:
    """(text, where) of every row whose text isn't null.

    Args:
        span: JSON lines may be read in part: the lines that start in it. Parquet in parts of row groups.
        format: `jsonl`, `json`, `csv`, `tsv` or `parquet`.
        column: its name, or a path to texts in it.
        errors: `strict` or `replace`, for invalid bytes in all but Parquet.
        encoding: of all but Parquet; a byte-order mark counts more than UTF-8.

    Raises:
        UserError: for a missing column, a value that isn't text, or a damaged file.
    """
    if format == "parquet":
        yield from _parquet(span, column, errors)
        return
    for member in members(span if format != "jsonl" else span._replace(start=0, end=None)):
        marked = marked_encoding(member.stream.peek(4)) if encoding == "utf-8" else None  # type: ignore[attr-defined]
        if format in _DELIMITERS:
            yield from _separated(member, format, column, errors, marked or encoding)
        elif format == "json":
            yield from _json(member, column, errors, marked or encoding)
        else:
            rows = _parsed_lines(
                _lines_of(member, errors, marked or encoding, span.start, span.end), member.name
            )
            if span.start:
                rows = (
                    (row, where.replace(" of ", f" behind byte {span.start} of ", 1)) for row, where in rows
                )
            yield from column_texts(rows, Column(column), member.name, errors, part=bool(span.start))


def row_groups(span: Span) -> list[int]:
    """The size in bytes of each row group of a Parquet file."""
    with _parquet_file(span) as file:
        return [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]


def _lines_of(
    member: Member, errors: str, encoding: str, start: int = 0, end: int | None = None
) -> Iterator[str]:
    """The lines of a member that start in a part of it; all of them where it isn't UTF-8."""
    if encoding != "utf-8":
        yield from _lines(decoded(member, errors, encoding), "\n")
        return
    stream, position = member.stream, 0
    if start:  # a line belongs to the part that it starts in
        stream.seek(start - 1)
        position = start - 1 + len(stream.readline())
    while (end is None or position < end) and (line := stream.readline()):
        try:
            yield line.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise UserError(undecodable(member.name, error, position)) from None
        position += len(line)


def _parsed_lines(lines: Iterator[str], name: str) -> Iterator[tuple[Any, str]]:
    for number, line in enumerate(lines, start=1):
        where = f"line {number} of {name}"
        if line.strip().strip(BOM):
            yield _parsed(line, where), where


def _json(member: Member, column: str, errors: str, encoding: str) -> Iterator[tuple[str, str]]:
    """A list of objects; an object of columns; or JSON lines under another name."""
    name, lines = member.name, _lines_of(member, errors, encoding)
    begin = []  # what is blank before the first line, and that line
    for line in lines:
        begin.append(line)
        if line.strip().strip(BOM):
            break
    lines = chain(begin, lines)
    rows: Iterator[tuple[Any, str]]
    if isinstance(row := _or_none("".join(begin)), dict) and not isinstance(row.get(column), list):
        rows = _parsed_lines(lines, name)
    else:
        value = _parsed("".join(lines) or "[]", name)
        if isinstance(value, dict) and isinstance(value.get(column), list):
            value = [{column: text} for text in value[column]]
        rows = (
            (r, f"row {i} of {name}") for i, r in enumerate(value if isinstance(value, list) else [value])
        )
    yield from column_texts(rows, Column(column), name, errors)


def _separated(
    member: Member, format: str, column: str, errors: str, encoding: str
) -> Iterator[tuple[str, str]]:
    csv.field_size_limit(2**31 - 1)
    name, delimiter = member.name, _DELIMITERS[format]
    lines = _lines(_without_mark(decoded(member, errors, encoding)))
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    try:
        header = next(reader, None)
        if header is None:
            return
        if column not in header:
            raise missing_column(column, header, name)
        place = header.index(column)
        for row in reader:
            where = f"line {reader.line_num} of {name}"
            if len(row) > len(header):
                raise UserError(
                    f"{where} has {len(row)} fields where the header has {len(header)}; put texts with "
                    f'{"commas" if delimiter == "," else "tabs"} in double quotes ("), and write a quote '
                    "inside as two"
                )
            if len(row) > place:
                yield row[place], where
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {name} isn't {format.upper()}: {error}") from None


def _without_mark(pieces: Iterator[str]) -> Iterator[str]:
    yield next(pieces, "").removeprefix(BOM)
    yield from pieces


def _lines(pieces: Iterator[str], newline: str = "") -> Iterator[str]:
    """The lines of a text with their ends, of whichever kind or of one."""
    rest = ""
    for text in pieces:
        if lines := io.StringIO(rest + text, newline=newline).readlines():
            rest = lines.pop()  # may go on in the next piece, even behind a carriage return
            yield from lines
    yield from io.StringIO(rest, newline=newline)


def _parquet(span: Span, name: str, errors: str) -> Iterator[tuple[str, str]]:
    with _parquet_file(span) as file:
        column = Column(name, file.schema_arrow.names)
        if column.top not in file.schema_arrow.names:
            raise missing_column(column.top, file.schema_arrow.names, str(span.path))
        yield from column_texts(_parquet_rows(span, file, column.top), column, str(span.path), errors)


def _parquet_rows(span: Span, file: Any, column: str) -> Iterator[tuple[Any, str]]:
    import pyarrow

    groups = range(span.start, file.metadata.num_row_groups if span.end is None else span.end)
    row = sum(file.metadata.row_group(i).num_rows for i in range(span.start))
    place = file.schema_arrow.names.index(column)
    try:
        for batch in file.iter_batches(ROWS, row_groups=list(groups), columns=[column]):
            if not batch.num_columns:  # a column of another name that the dots of this one lead to
                raise UserError(f"column {column!r} of {span.path} holds {file.schema_arrow.types[place]}")
            for value in batch.column(0).to_pylist():
                yield {column: value}, f"row {row} of {span.path}"
                row += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{span.path} can't be read near row {row}: {str(error).splitlines()[0]}") from None


def _parquet_file(span: Span) -> Any:
    import pyarrow
    import pyarrow.parquet

    if span.packing:
        raise UserError(f"{span.path} is a compressed Parquet file; unpack it (Parquet compresses by itself)")
    for member in members(span._replace(start=0, end=None)):
        member.stream.close()  # it can be read, and isn't a pipe
    try:
        return pyarrow.parquet.ParquetFile(span.path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{span.path} isn't a whole Parquet file: {str(error).splitlines()[0]}") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text.removeprefix(BOM))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} isn't JSON: {error}") from None


def _or_none(text: str) -> Any:
    try:
        return json.loads(text.removeprefix(BOM))
    except (ValueError, RecursionError):
        return None
