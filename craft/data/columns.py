"""The text of a row: that of a column, or of values nested in one.

`messages[].content` leads through the objects of a list: `.` to a key, `[]` to every item. The texts that it
leads to are the lines of one document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from craft.utils.common import did_you_mean
from craft.utils.errors import UserError

# JSON objects may leave out what they don't have: a column is only missing if none of so many rows has it.
SEARCHED = 10_000
_PATH = re.compile(r"[^.\[\]]+(\[\])*(\.[^.\[\]]+(\[\])*)*")


class Column:
    """Finds the texts in rows, and remembers which keys there were.

    Args:
        name: of a column, which may have dots and brackets itself, or a path.
        columns: those of the table, where they are known beforehand.
    """

    def __init__(self, name: str, columns: list[str] | None = None) -> None:
        self.name = name
        nested = _PATH.fullmatch(name) and name not in (columns or [])
        self.steps = re.findall(r"\[\]|[^.\[\]]+", name) if nested else [name]
        self.keys: list[dict[str, None]] = [dict.fromkeys(columns or []), *({} for _ in self.steps[1:])]
        self.found = False

    @property
    def top(self) -> str:
        """The column of the table that holds it."""
        return self.steps[0]

    def text(self, row: Any, where: str) -> str | None:
        """The text of a row; None where there is none.

        Raises:
            UserError: for values that aren't text.
        """
        if not isinstance(row, dict):
            raise UserError(f"{where} holds {kind_of(row)} instead of an object with columns")
        if self.name in row:
            self.found, values = True, [row[self.name]]
        else:
            values = list(self._values(row, 0, where))
        texts = [self._as_text(value, where) for value in values if value is not None]
        return "\n".join(texts) if texts else None

    def _values(self, value: Any, depth: int, where: str) -> Iterator[Any]:
        if depth == len(self.steps):
            self.found = True
            yield value
        elif value is None:
            return
        elif (step := self.steps[depth]) == "[]":
            if not isinstance(value, list):
                raise UserError(
                    f"{where}: {self._path(depth)!r} holds {kind_of(value)}, not a list; leave out []"
                )
            for item in value:
                yield from self._values(item, depth + 1, where)
        else:
            if not isinstance(value, dict):
                raise UserError(
                    f"{where}: {self._path(depth)!r} holds {kind_of(value)}{self._inside(value, depth)}"
                )
            if not self.found:
                self.keys[depth].update(dict.fromkeys(map(str, value)))
            if step in value:
                yield from self._values(value[step], depth + 1, where)

    def _path(self, depth: int) -> str:
        return ".".join(self.steps[:depth]).replace(".[]", "[]")

    def _inside(self, value: Any, depth: int) -> str:
        """What to say of a value that is something else than the path says."""
        if isinstance(value, list):
            return f"; for each item of it write {self._path(depth)}[]"
        return f", which has no {self.steps[depth]!r}"

    def _as_text(self, value: Any, where: str) -> str:
        if isinstance(value, str):
            return value
        inside = list(dict.fromkeys(_paths(value, self.name)))[:5]
        way_out = (
            f"name a text in it: data.text_column={inside[0]}"
            if inside
            else "choose another data.text_column"
        )
        others = f" (or {', '.join(inside[1:])})" if inside[1:] else ""
        raise UserError(f"{where}: column {self.name!r} holds {kind_of(value)}, not text; {way_out}{others}")

    def missing(self, table: str) -> UserError | None:
        """The error of a table in which the column wasn't found."""
        for depth, step in enumerate(self.steps):
            known = list(self.keys[depth])
            if step == "[]" or step in known:
                continue
            if len(self.steps) == 1 or (depth == 0 and did_you_mean(self.name, known)):
                return missing_column(self.name, known, table)
            above = f"the keys of {self._path(depth)}" if depth else "the columns"
            hint = did_you_mean(step, known) or "; name one of them"
            return UserError(
                f"data.text_column={self.name!r}: {step!r} isn't among {above} in {table} "
                f"({', '.join(known)}){hint}"
            )
        return None


def column_texts(
    rows: Iterator[tuple[Any, str]], column: Column, table: str, errors: str, part: bool = False
) -> Iterator[tuple[str, str]]:
    """(text, where) of every row that has one.

    Args:
        errors: `strict` or `replace`, for escapes that stand for half a character.
        part: that these are some rows of a table, so that the column may be missing from all of them.

    Raises:
        UserError: for a missing column or a value that isn't text.
    """
    searched = 0
    for row, where in rows:
        text = column.text(row, where)
        if text is not None:
            yield _encodable(text, errors, where), where
        elif not column.found and not part:
            searched += 1
            if searched == SEARCHED:
                break
    if searched and not column.found and (error := column.missing(table)):
        raise error


def missing_column(column: str, columns: list[str], name: str) -> UserError:
    """The error of a table without the text column."""
    return UserError(
        f"data.text_column={column!r} isn't among the columns of {name} ({', '.join(columns)})"
        f"{did_you_mean(column, columns) or '; name the one with the text: data.text_column=NAME'}"
    )


def kind_of(value: Any) -> str:
    """`an object`, `int 3`: a value in a message."""
    kinds = {bool: "a truth value", dict: "an object", list: "a list", bytes: "bytes", type(None): "null"}
    return kinds.get(type(value)) or f"{type(value).__name__} {value!r}"


def _paths(value: Any, path: str) -> Iterator[str]:
    """The paths that lead to texts in a value."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, list):
        for item in value[:10]:
            yield from _paths(item, f"{path}[]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, f"{path}.{key}")


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
