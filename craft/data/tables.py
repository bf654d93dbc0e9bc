"""Tables on the disk to texts: JSON lines, JSON, CSV, TSV and Parquet, each row's text as it is written.

The general readers of `datasets` guess types: texts that look like dates become time stamps, `01` a number, a
number among texts makes all of them JSON. Here a text stays the text it is, and what isn't one is refused by
its line. Datasets of the Hub, whose types are declared, go through `datasets` (`hub_dataset.py`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from craft.data.columns import Rows, column_texts, top_column
from craft.data.containers import Member, Span, bom_encoding
from craft.data.reading import decoded
from craft.utils.errors import UserError

ROWS = 1000  # rows of Parquet per read
DELIMITERS = {"csv": ",", "tsv": "\t"}


def table_texts(
    member: Member, format: str, column: str, errors: str, encoding: str
) -> Iterator[tuple[str, str]]:
    """(text, where) of every row whose text isn't null.

    Args:
        format: `jsonl`, `json`, `csv` or `tsv`.
        column: its name, or a path to texts in it.
        errors: `strict` or `replace`, for invalid bytes.
        encoding: a byte-order mark counts more than UTF-8.

    Raises:
        UserError: for a missing column, a value that isn't text, or a damaged file.
    """
    if encoding == "utf-8":
        encoding = bom_encoding(member.stream.peek(4)) or "utf-8-sig"
    lines = _lines(decoded(member, errors, encoding))
    rows = _separated(lines, member.name, format) if format in DELIMITERS else _json(lines, member)
    yield from column_texts(rows, column, member.name, errors, part=bool(member.start))


def parquet_texts(span: Span, column: str, errors: str) -> Iterator[tuple[str, str]]:
    """As `table_texts`, of some row groups of a Parquet file."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(span.path) as file:
        top = top_column(column, file.schema_arrow.names, str(span.path))
        groups = range(span.start, file.num_row_groups if span.end is None else span.end)
        row = sum(file.metadata.row_group(i).num_rows for i in range(span.start))
        batches = file.iter_batches(ROWS, row_groups=list(groups), columns=[top])
        yield from arrow_texts(batches, column, str(span.path), errors, row)


def arrow_texts(
    batches: Iterable[Any], column: str, table: str, errors: str, row: int = 0
) -> Iterator[tuple[str, str]]:
    """As `table_texts`, of Arrow's tables or batches, the first of which begins with row number `row`."""
    tops = (batch.select([top_column(column, batch.schema.names, table)]) for batch in batches)
    values = (each for batch in tops for each in batch.to_pylist())
    rows = ((value, f"row {number} of {table}") for number, value in enumerate(values, start=row))
    yield from column_texts(rows, column, table, errors)


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    """The lines of a text with their ends, of whichever kind."""
    rest = ""
    for text in pieces:
        if lines := io.StringIO(rest + text, newline="").readlines():
            rest = lines.pop()  # may go on in the next piece, even behind a carriage return
            yield from lines
    yield from io.StringIO(rest, newline="")


def _json(lines: Iterator[str], member: Member) -> Rows:
    """A list of objects, or an object a line, whatever the file is called."""
    behind = f" behind byte {member.start}" if member.start else ""
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("["):
            rows = _parsed(line + "".join(lines), member.name)
            yield from ((row, f"row {i} of {member.name}") for i, row in enumerate(rows))
        elif line.strip():
            where = f"line {number}{behind} of {member.name}"
            yield _parsed(line, where), where


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} isn't JSON: {error}", code="text-format") from None


def _separated(lines: Iterator[str], name: str, format: str) -> Rows:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(lines, strict=True, delimiter=DELIMITERS[format])
    try:
        for row in reader:
            if None in row:
                raise UserError(
                    f"line {reader.line_num} of {name} has more fields than the header; put texts with "
                    "commas or tabs in double quotes, and write a quote inside as two",
                    code="text-format",
                )
            yield row, f"line {reader.line_num} of {name}"
    except csv.Error as error:
        raise UserError(
            f"line {reader.reader.line_num} of {name} isn't {format.upper()}: {error}", code="text-format"
        ) from None
