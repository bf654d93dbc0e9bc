"""Where text comes from: the built-in corpus, files, tables; datasets of the Hub are in `hub_dataset.py`. One
interface for all of them.

A source yields pieces of text in a fixed order, and says by a cheap signature whether it may have changed
since it was last read. Rows of tables and Hub datasets are documents: an `<eos>` follows each. For streams it
also names its units: parts, in the same order, that can each be read without reading the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from craft.data.containers import Span, marked_encoding, was_misread
from craft.data.reading import read_text
from craft.data.tables import row_groups, table_texts
from craft.utils.common import did_you_mean
from craft.utils.errors import UserError
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
    """A corpus before it is tokenized.

    Attributes:
        documents: whether its pieces are documents.
        uses: the fields of the arguments that decide what is read of it, beside its place.
    """

    documents: bool

    @property
    def uses(self) -> Sequence[str]: ...

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
    uses = ()

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
        files: (path on the disk, how it is packed) in order, each once.
        errors: `strict` or `replace`, for bytes that aren't of the encoding.
        encoding: the name of a codec of Python.
        format: `text`, or None to read the members of archives as text whatever their names say.
        separator: before each file but the first, also of those in an archive.
    """

    files: list[tuple[Path, str]]
    errors: str
    encoding: str = "utf-8"
    format: str | None = "text"
    separator: str = ""
    documents = False
    uses = ("encoding", "errors", "separator")

    def pieces(self) -> Iterator[Piece]:
        return self._pieces(_spans(self.files, self.format))

    def units(self, size: int) -> list[Unit]:
        spans = chain.from_iterable(_cut(s, size, self.encoding) for s in _spans(self.files, self.format))
        return _grouped(spans, size, self._pieces)

    def _pieces(self, spans: list[Span]) -> Iterator[Piece]:
        for span in spans:
            where = f"{span.path} behind byte {span.start}" if span.start else str(span.path)
            if self.separator and not span.start and span.path != self.files[0][0]:
                yield Piece(self.separator, "data.separator", 0)
            offset = 0
            for text in read_text(span, self.errors, self.encoding, self.separator):
                yield Piece(text, where, offset)
                offset += len(text)

    def signature(self) -> list[Any]:
        joined = [self.separator] if self.separator else []  # as it was before there were separators
        return [self.errors, *joined, *_signature(self.files, self.encoding, "text")]


@dataclass(frozen=True)
class Tables:
    """The text column of JSON lines, JSON, CSV, TSV or Parquet files.

    Args:
        files: (path on the disk, how it is packed) in order.
        format: `jsonl`, `json`, `csv`, `tsv` or `parquet`.
        text_column: its name, or a path to texts in it.
        errors: `strict` or `replace`, for bytes that aren't of the encoding.
        encoding: the name of a codec of Python.
        by_name: whether the members of archives must be named as of that format.
    """

    files: list[tuple[Path, str]]
    format: str
    text_column: str
    errors: str = "strict"
    encoding: str = "utf-8"
    by_name: bool = True
    documents = True

    @property
    def uses(self) -> Sequence[str]:
        return ("text_column",) if self.format == "parquet" else ("text_column", "encoding", "errors")

    def pieces(self) -> Iterator[Piece]:
        return self._pieces(self._spans())

    def units(self, size: int) -> list[Unit]:
        return _grouped(chain.from_iterable(self._cut(s, size) for s in self._spans()), size, self._pieces)

    def _spans(self) -> list[Span]:
        return _spans(self.files, self.format if self.by_name else None)

    def _cut(self, span: Span, size: int) -> Iterator[tuple[Span, int]]:
        if self.format == "jsonl":
            yield from _cut(span, size, self.encoding)
        elif self.format == "parquet":
            for i, n_bytes in enumerate(row_groups(span)):
                yield span._replace(start=i, end=i + 1), n_bytes
        else:  # a line break in a CSV field and one between rows look alike
            yield span, span.path.stat().st_size

    def _pieces(self, spans: list[Span]) -> Iterator[Piece]:
        for span in spans:
            for text, where in table_texts(span, self.format, self.text_column, self.errors, self.encoding):
                yield Piece(text, where, 0)

    def signature(self) -> list[Any]:
        return [
            self.format,
            self.text_column,
            self.errors,
            *_signature(self.files, self.encoding, self.format),
        ]


def _spans(files: list[tuple[Path, str]], format: str | None) -> list[Span]:
    return [Span(path, packing, format=format) for path, packing in files]


def _signature(files: list[tuple[Path, str]], encoding: str, format: str) -> list[Any]:
    """Of the files, and of how they are read where that isn't as it has always been."""
    archives = [packing for path, packing in files if was_misread(path, packing, format)]
    other = [["encoding", encoding]] if encoding != "utf-8" else []
    return [*(file_signature(path) for path, _ in files), *([archives] if archives else []), *other]


def _cut(span: Span, size: int, encoding: str) -> Iterator[tuple[Span, int]]:
    """A file in spans of `size` bytes, each with its size; packed ones, and others than UTF-8, come whole."""
    length = span.path.stat().st_size
    if span.packing or encoding != "utf-8" or length < 2 * size or _is_marked(span.path):
        yield span, length
        return
    starts = range(0, length - size + 1, size)  # the last span takes what is left
    for start, end in zip(starts, [*starts[1:], length]):
        yield span._replace(start=start, end=end), end - start


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        return marked_encoding(file.read(4)) is not None


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
