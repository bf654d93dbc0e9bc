"""Where text comes from: the built-in corpus, files, tables, the Hub. One interface for all of them.

A source yields pieces of text in a fixed order, and says by a cheap signature whether it may have changed
since it was last read. Rows of tables and Hub datasets are documents: an `<eos>` follows each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from craft.data.reading import read_text
from craft.utils.common import UserError, did_you_mean

BUILTIN = ("python_docs",)
ROWS = 1000  # rows of a table per read
# Time stamps of files advance in ticks of up to 10 ms (a kernel's jiffy): an edit within the tick of the
# last one leaves them equal. A file is therefore only trusted once it is older than this.
TICK_NS = 50_000_000


class Piece(NamedTuple):
    """A stretch of text, or one document; `where` and `offset` (in characters) locate it in messages."""

    text: str
    where: str
    offset: int


class Source(Protocol):
    """A corpus before it is tokenized."""

    documents: bool

    def pieces(self) -> Iterator[Piece]:
        """The text from its beginning, the same on every call."""

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

    def signature(self) -> list[Any]:
        return [self.path, hash_text(self.text())]


@dataclass(frozen=True)
class TextFiles:
    """Text files, one after the other.

    Args:
        files: (path on the disk, suffix of the original name) in order.
        errors: `strict` or `replace`, for invalid UTF-8.
    """

    files: list[tuple[Path, str]]
    errors: str
    documents = False

    def pieces(self) -> Iterator[Piece]:
        for path, suffix in self.files:
            offset = 0
            for text in read_text(path, suffix, self.errors):
                yield Piece(text, str(path), offset)
                offset += len(text)

    def signature(self) -> list[Any]:
        return [self.errors, *(file_signature(path) for path, _ in self.files)]


@dataclass(frozen=True)
class Tables:
    """The text column of json, csv or parquet files.

    They are read as a stream: `datasets`' prepared copies are keyed by time stamps and would go stale.
    """

    files: list[Path]
    format: str
    text_column: str
    documents = True

    def pieces(self) -> Iterator[Piece]:
        from glob import escape

        # datasets takes paths for patterns. pandas would turn the texts "NA" and "null" into nothing.
        options: dict[str, Any] = {"keep_default_na": False} if self.format == "csv" else {}
        names = [escape(str(f.absolute())) for f in self.files]
        dataset = load(self.format, data_files=names, split="train", streaming=True, **options)
        yield from rows(dataset, self.text_column, str(self.files[0]))

    def signature(self) -> list[Any]:
        return [self.format, self.text_column, *map(file_signature, self.files)]


@dataclass
class HubDataset:
    """The text column of one split of a dataset on the Hub, or of a local dataset folder."""

    path: str
    config_name: str | None
    revision: str | None
    split: str
    text_column: str
    streaming: bool
    documents = True

    def __post_init__(self) -> None:
        self._dataset = load(
            self.path,
            name=self.config_name,
            revision=self.revision,
            split=self.split,
            streaming=self.streaming,
        )

    def pieces(self) -> Iterator[Piece]:
        return rows(self._dataset, self.text_column, f"{self.path}[{self.split}]")

    def signature(self) -> list[Any]:
        if self.streaming:  # datasets has no fingerprint for these, and nothing of a stream is remembered
            return [self.path, self.config_name, self.revision, self.split, self.text_column]
        return [self._dataset._fingerprint, self.text_column]


def load(path: str, **kwargs: Any) -> Any:
    """`datasets.load_dataset` with its many ways to fail told in one line."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return datasets.load_dataset(path, **kwargs)
    except (ConnectionError, HfHubHTTPError) as error:
        raise UserError(unreachable(path, error)) from None
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{path} can't be loaded: {reason}") from None


def unreachable(path: str, error: Exception) -> str:
    """The message for a URL or dataset that can't be fetched."""
    from huggingface_hub import constants

    why = (
        "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error.__cause__ or error).splitlines()[0]
    )
    return f"{path} can't be reached ({why}); with a copy here use data.source=files data.path=/path/to/copy"


def rows(dataset: Any, column: str, name: str) -> Iterator[Piece]:
    """Every non-null text of a column, as one document each.

    Raises:
        UserError: if the column is missing or doesn't hold text.
    """
    import pyarrow

    row = 0
    try:
        for table in dataset.with_format("arrow").iter(batch_size=ROWS):
            if column not in table.column_names:
                raise UserError(
                    f"data.text_column={column!r} isn't among the columns of {name} "
                    f"({', '.join(table.column_names)}){did_you_mean(column, table.column_names)}"
                )
            for text in table.column(column).to_pylist():
                if not isinstance(text, (str, type(None))):
                    kind = table.column(column).type
                    raise UserError(
                        f"column {column!r} of {name} holds {kind}, not text: choose another data.text_column"
                    )
                if text is not None:
                    yield Piece(text, f"row {row} of {name}", 0)
                row += 1
    except (ConnectionError, OSError) as error:
        raise UserError(unreachable(name, error)) from None
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{name} can't be read: {str(error).splitlines()[0]}") from None


def file_signature(path: Path) -> list[Any]:
    """Path, size, times of the last change of content and of status, inode: equal only for an untouched file.

    The status time catches an edit that restores size and modification time.
    """
    while True:
        stat = path.stat()
        age = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns)
        if not 0 <= age < TICK_NS:
            return [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        time.sleep((TICK_NS - age) / 1e9)


def hash_text(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
