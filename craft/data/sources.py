"""Where text comes from: the built-in corpus, files, tables; datasets of the Hub are in `hub_dataset.py`. One
interface for all of them.

A source yields pieces of text in a fixed order, and says by a cheap signature whether it may have changed
since it was last read. Rows of tables and Hub datasets are documents: an `<eos>` follows each. For streams it
also names its units: parts, in the same order, that can each be read without reading the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from craft.data.reading import COMPRESSED, Span, read_text
from craft.data.tables import row_groups, table_texts
from craft.utils.common import UserError, did_you_mean
from craft.utils.files import file_signature

BUILTIN = ("python_docs",)


class Piece(NamedTuple):
    """A stretch of text, or one document; `where` and `offset` (in characters) locate it in messages."""

    text: str
    where: str
    offset: int


class Unit(NamedTuple):
    """A part of a source that can be read by itself; `size` is in proportion to its length."""

    size: int
    pieces: Callable[[], Iterator[Piece]]


class Source(Protocol):
    """A corpus before it is tokenized."""

    documents: bool

    def pieces(self) -> Iterator[Piece]:
        """The text from its beginning, the same on every call."""

    def units(self, size: int) -> list[Unit]:
        """The same text in parts of at least `size` bytes, as far as it can be taken apart."""

    def signature(self) -> list[Any]:
        """A small value that changes whenever the text may have changed."""


@dataclass(frozen=True)
class BuiltIn:
    """`python_docs`: the language reference topics of the running CPython, 0.46 MB, no download."""

    path: str
    documents = False

    def __post_init__(self) -> None:
        if self.path not in BUILTIN:
            raise UserError(
                f"data.path={self.path!r} isn't a built-in corpus ({', '.join(BUILTIN)})"
                f"{did_you_mean(self.path, BUILTIN)}; for a file of your own say data.source=files"
            )

    def text(self) -> str:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"

    def pieces(self) -> Iterator[Piece]:
        yield Piece(self.text(), self.path, 0)

    def units(self, size: int) -> list[Unit]:
        return [Unit(1, self.pieces)]

    def signature(self) -> list[Any]:
        return [self.path, hashlib.sha256(self.text().encode()).hexdigest()]


@dataclass(frozen=True)
class TextFiles:
    """Text files, one after the other.

    Args:
        files: (path on the disk, suffix of the original name) in order, each once.
        errors: `strict` or `replace`, for invalid UTF-8.
        separator: before each file but the first.
    """

    files: list[tuple[Path, str]]
    errors: str
    separator: str = ""
    documents = False

    def pieces(self) -> Iterator[Piece]:
        return self._pieces([Span(path, suffix) for path, suffix in self.files])

    def units(self, size: int) -> list[Unit]:
        spans = chain.from_iterable(_cut(path, suffix, size) for path, suffix in self.files)
        return _grouped(spans, size, self._pieces)

    def _pieces(self, spans: list[Span]) -> Iterator[Piece]:
        for span in spans:
            where = f"{span.path} behind byte {span.start}" if span.start else str(span.path)
            if self.separator and not span.start and span.path != self.files[0][0]:
                yield Piece(self.separator, "data.separator", 0)
            offset = 0
            for text in read_text(span, self.errors):
                yield Piece(text, where, offset)
                offset += len(text)

    def signature(self) -> list[Any]:
        joined = [self.separator] if self.separator else []  # as it was before there were separators
        return [self.errors, *joined, *(file_signature(path) for path, _ in self.files)]


@dataclass(frozen=True)
class Tables:
    """The text column of JSON lines, JSON, CSV or Parquet files.

    Args:
        files: (path on the disk, suffix of the original name) in order.
        format: `jsonl`, `json`, `csv` or `parquet`.
        errors: `strict` or `replace`, for invalid UTF-8.
    """

    files: list[tuple[Path, str]]
    format: str
    text_column: str
    errors: str = "strict"
    documents = True

    def pieces(self) -> Iterator[Piece]:
        return self._pieces([Span(path, suffix) for path, suffix in self.files])

    def units(self, size: int) -> list[Unit]:
        return _grouped(
            chain.from_iterable(self._cut(*file, size) for file in self.files), size, self._pieces
        )

    def _cut(self, path: Path, suffix: str, size: int) -> Iterator[tuple[Span, int]]:
        if self.format == "jsonl":
            yield from _cut(path, suffix, size)
        elif self.format == "parquet":
            for i, n_bytes in enumerate(row_groups(Span(path, suffix))):
                yield Span(path, suffix, i, i + 1), n_bytes
        else:  # a line break in a CSV field and one between rows look alike
            yield Span(path, suffix), path.stat().st_size

    def _pieces(self, spans: list[Span]) -> Iterator[Piece]:
        for span in spans:
            for text, where in table_texts(span, self.format, self.text_column, self.errors):
                yield Piece(text, where, 0)

    def signature(self) -> list[Any]:
        return [self.format, self.text_column, self.errors, *(file_signature(path) for path, _ in self.files)]


def _cut(path: Path, suffix: str, size: int) -> Iterator[tuple[Span, int]]:
    """A file in spans of `size` bytes, each with its size; compressed files come whole."""
    length = path.stat().st_size
    if suffix in COMPRESSED or length < 2 * size:
        yield Span(path, suffix), length
        return
    starts = range(0, length - size + 1, size)  # the last span takes what is left
    for start, end in zip(starts, [*starts[1:], length]):
        yield Span(path, suffix, start, end), end - start


def _grouped(
    spans: Iterable[tuple[Span, int]], size: int, pieces: Callable[[list[Span]], Iterator[Piece]]
) -> list[Unit]:
    """Consecutive spans in units of at least `size` bytes, but for the last."""
    units: list[Unit] = []
    group: list[Span] = []
    total = 0

    def unit() -> Unit:
        return Unit(total, partial(pieces, group))

    for span, n_bytes in spans:
        group.append(span)
        total += n_bytes
        if total >= size:
            units.append(unit())
            group, total = [], 0
    return [*units, unit()] if group else units
