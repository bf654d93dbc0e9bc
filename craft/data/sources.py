"""Where text comes from: files; datasets of the Hub are in `hub_dataset.py`. One interface for both.

A source yields pieces of text in a fixed order, and says by a cheap signature whether it may have changed
since it was last read. Rows of tables and Hub datasets are documents: an `<eos>` follows each. For streams it
also names its shards: parts, in the same order, that can each be read without reading the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from craft.data.containers import HEAD, Member, Span, bom_encoding, members, packing_of, reading_errors
from craft.data.reading import decoded
from craft.data.tables import parquet_texts, table_texts
from craft.utils.errors import UserError
from craft.utils.files import file_signature


class Piece(NamedTuple):
    """A stretch of text, or one document; `where` and `offset` (in characters) locate it in messages."""

    text: str
    where: str
    offset: int = 0


class Shard(NamedTuple):
    """A part of a source that can be read by itself; `size` is in proportion to its length."""

    size: int
    pieces: Callable[[], Iterator[Piece]]


class Source(Protocol):
    """A corpus before it is tokenized.

    Attributes:
        documents: whether its pieces are documents.
    """

    @property
    def documents(self) -> bool: ...

    def pieces(self) -> Iterator[Piece]:
        """The text from its beginning, the same on every call."""

    def shards(self, size: int) -> list[Shard]:
        """The same text in parts of at least `size` bytes, as far as it can be taken apart."""

    def signature(self) -> list[Any]:
        """A small value that changes whenever the text may have changed."""


@dataclass(frozen=True)
class Files:
    """Text files, one after the other, or the text column of tables.

    Args:
        paths: in order, each once.
        format: `text`, `jsonl`, `json`, `csv`, `tsv` or `parquet`.
        text_column: of tables: its name, or a path to texts in it.
        errors: `strict` or `replace`, for bytes that aren't of the encoding.
        encoding: the name of a codec of Python.
        separator: before each text but the first, also of those in an archive.
        by_name: whether the members of archives must be named as of that format.
    """

    paths: list[Path]
    format: str = "text"
    text_column: str = "text"
    errors: str = "strict"
    encoding: str = "utf-8"
    separator: str = ""
    by_name: bool = True

    @property
    def documents(self) -> bool:
        return self.format != "text"

    @property
    def uses(self) -> Sequence[str]:
        """The settings that decide how such files are read."""
        how = {"text": ("separator", "encoding"), "parquet": ("text_column",)}
        return how.get(self.format, ("text_column", "encoding"))

    def pieces(self) -> Iterator[Piece]:
        return self._pieces([Span(path) for path in self.paths])

    def shards(self, size: int) -> list[Shard]:
        shards, group, total = [], list[Span](), 0
        for path in self.paths:
            for span, n_bytes in self._cut(path, size):
                group.append(span)
                total += n_bytes
                if total >= size:
                    shards.append(Shard(total, partial(self._pieces, group)))
                    group, total = [], 0
        return [*shards, Shard(total, partial(self._pieces, group))] if group else shards

    def signature(self) -> list[Any]:
        read_as = [self.format, self.text_column, self.errors, self.encoding, self.separator]
        return [*read_as, *(file_signature(path) for path in self.paths)]

    def _pieces(self, spans: list[Span]) -> Iterator[Piece]:
        for span in spans:
            with reading_errors(span.path):
                if self.format == "parquet":
                    yield from starmap(Piece, parquet_texts(span, self.text_column, self.errors))
                else:
                    yield from self._members(span)

    def _members(self, span: Span) -> Iterator[Piece]:
        first = not span.start and span.path == self.paths[0]
        for member in members(span, self.encoding, lines=self.documents):
            if self.by_name and member.format not in ("", self.format):
                raise UserError(
                    f"{span.path} mixes {self.format} and {member.format} files ({member.name}); unpack it "
                    "and choose one kind with a pattern",
                    code="text-format",
                )
            if self.documents:
                texts = table_texts(member, self.format, self.text_column, self.errors, self.encoding)
                yield from starmap(Piece, texts)
                continue
            if self.separator and not first and not span.start:
                yield Piece(self.separator, "data.separator")
            first = False
            yield from self._text(member)

    def _text(self, member: Member) -> Iterator[Piece]:
        where = f"{member.name} behind byte {member.start}" if member.start else member.name
        offset = 0
        for text in decoded(member, self.errors, self.encoding):
            yield Piece(text, where, offset)
            offset += len(text)

    def _cut(self, path: Path, size: int) -> Iterator[tuple[Span, int]]:
        """A file in spans of `size` bytes (of Parquet row groups), each with its size. Packed files come
        whole, others than UTF-8, and CSV, where a line break in a field looks like one between rows."""
        with reading_errors(path), path.open("rb") as file:
            head, length = file.peek(HEAD), path.stat().st_size
            if self.format == "parquet":
                import pyarrow.parquet

                metadata = pyarrow.parquet.read_metadata(path)
                for i in range(metadata.num_row_groups):
                    yield Span(path, i, i + 1), metadata.row_group(i).total_byte_size
                return
        whole = self.encoding != "utf-8" or packing_of(head) or bom_encoding(head)
        if whole or self.format not in ("text", "jsonl") or length < 2 * size:
            yield Span(path), length
            return
        starts = range(0, length - size + 1, size)  # the last span takes what is left
        for start, end in zip(starts, [*starts[1:], length]):
            yield Span(path, start, end), end - start
