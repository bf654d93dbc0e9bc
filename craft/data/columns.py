"""The text of a row: that of a column, or of values nested in one.

`messages[].content` leads through the objects of a list: `.` to a key, `[]` to every item. The texts that it
leads to are the lines of one document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from reprlib import repr as short
from typing import Any

from craft.utils.common import did_you_mean
from craft.utils.errors import UserError

# JSON objects may leave out what they don't have: a column is only missing if none of so many rows has it.
SEARCHED = 10_000
SHOWN = 20  # paths in a message

Rows = Iterable[tuple[Any, str]]
"""Rows of a table as objects, each with its place for messages."""


def column_texts(
    rows: Rows, column: str, table: str, errors: str, part: bool = False
) -> Iterator[tuple[str, str]]:
    """(text, where) of every row that has one.

    Args:
        column: its name, or a path into it.
        errors: `strict` or `replace`, for escapes that stand for half a character.
        part: that these are some rows of a table, so that the column may be missing from all of them.

    Raises:
        UserError: for a missing column or a value that isn't text.
    """
    steps, found, missing = _path_of(column), part, False
    first: dict[str, Any] = {}
    for number, (row, where) in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{where} holds {short(row)}, not an object with columns", code="text-format")
        values = [row[column]] if column in row else list(_follow(row, steps))
        texts = [_text(value, column, where, errors) for value in values if value is not None]
        found, missing, first = found or bool(texts), missing or not values, first or row
        if texts:
            yield "\n".join(texts), where
        elif missing and not found and number >= SEARCHED:
            break
    if missing and not found:
        raise _missing_column(column, list(islice(_paths(first), SHOWN)), table)


def _path_of(column: str) -> list[str]:
    """The steps of a path: keys, and `[]` for each item of a list."""
    return re.findall(r"\[\]|[^.\[\]]+", column)


def top_column(column: str, known: list[str], table: str) -> str:
    """The column of a table that holds what a path leads to.

    Raises:
        UserError: if the table hasn't got it.
    """
    top = column if column in known else next(iter(_path_of(column)), column)
    if top not in known:
        raise _missing_column(column, known, table)
    return top


def _missing_column(column: str, known: list[str], table: str) -> UserError:
    """The error of a table without the text column."""
    return UserError(
        f"data.text_column={column!r} isn't in {table}, which has {', '.join(known)}"
        f"{did_you_mean(column, known) or '; name the one with the text: data.text_column=NAME'}",
        code="text-column",
    )


def _follow(value: Any, steps: Sequence[str]) -> Iterator[Any]:
    """What a path leads to: None where null or an empty list ends it, nothing if it isn't there."""
    if not steps:
        yield value
    elif value is None or value == []:
        yield None
    elif steps[0] == "[]":
        for item in value if isinstance(value, list) else ():
            yield from _follow(item, steps[1:])
    elif isinstance(value, dict) and steps[0] in value:
        yield from _follow(value[steps[0]], steps[1:])


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """The paths that lead to single values."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        yield from dict.fromkeys(each for item in value[:10] for each in _paths(item, f"{path}[]"))
    else:
        yield path


def _text(value: Any, column: str, where: str, errors: str) -> str:
    if not isinstance(value, str):
        inside = list(islice(_paths(value, column), SHOWN)) if isinstance(value, dict | list) else []
        raise UserError(
            f"{where}: data.text_column={column} holds {short(value)}, not text; name "
            + (f"a text in it: {' or '.join(inside)}" if inside else "another column"),
            code="text-column",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # an escape such as \ud83d
        if errors == "replace":
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        raise UserError(
            f"{where} holds the unpaired surrogate U+{ord(value[error.start]):04X}, which isn't a character; "
            "correct it, or read it with data.errors=replace",
            code="text-encoding",
        ) from None
    return value
