"""Where text comes from: the built-in corpus, files, tables, the Hub. One interface for all of them.

A source yields pieces of text in a fixed order, and says by a cheap signature whether it may have changed
since it was last read. Rows of tables and Hub datasets are documents: an `<eos>` follows each. For streams it
also names its units: parts, in the same order, that can each be read without reading the others.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from craft.data.reading import COMPRESSED, Span, read_text
from craft.data.tables import ROWS, missing_column, row_groups, table_texts
from craft.utils.common import UserError, did_you_mean
from craft.utils.files import file_signature
from craft.utils.hub import of_the_network, quiet, told

A_COPY = "with a copy here use data.source=files data.path=/path/to/copy"
BUILTIN = ("python_docs",)
# Datasets of more files than this aren't asked for the parts of each, which takes a request a file.
MANY_FILES = 256
MOST_UNITS = 4096
SAVED_TO_DISK = ("dataset_dict.json", "state.json")  # what `Dataset.save_to_disk` leaves in its folder


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
        return self._pieces([Span(path, suffix) for path, suffix in self.files])

    def units(self, size: int) -> list[Unit]:
        spans = chain.from_iterable(_cut(path, suffix, size) for path, suffix in self.files)
        return _grouped(spans, size, self._pieces)

    def _pieces(self, spans: list[Span]) -> Iterator[Piece]:
        for span in spans:
            where = f"{span.path} behind byte {span.start}" if span.start else str(span.path)
            offset = 0
            for text in read_text(span, self.errors):
                yield Piece(text, where, offset)
                offset += len(text)

    def signature(self) -> list[Any]:
        return [self.errors, *(file_signature(path) for path, _ in self.files)]


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
        self._dataset = load(self.path, self.config_name, self.revision, self.split, self.streaming)

    def pieces(self) -> Iterator[Piece]:
        return self._rows(self._dataset)

    def units(self, size: int) -> list[Unit]:
        dataset = self._dataset
        if not self.streaming:
            dataset = dataset.to_iterable_dataset(num_shards=max(1, min(MOST_UNITS, len(dataset) // ROWS)))
        elif dataset.num_shards <= MANY_FILES:
            dataset = dataset.reshard()  # Parquet by row groups instead of files
        count = min(dataset.num_shards, MOST_UNITS)

        def unit(index: int) -> Unit:
            return Unit(1, lambda: self._rows(dataset.shard(num_shards=count, index=index)))

        return [unit(i) for i in range(count)]

    def _rows(self, dataset: Any) -> Iterator[Piece]:
        return rows(dataset, self.text_column, f"{self.path}[{self.split}]")

    def signature(self) -> list[Any]:
        if self.streaming:  # datasets has no fingerprint for these; the addresses of files hold the commit
            files = getattr(getattr(self._dataset, "_ex_iterable", None), "kwargs", {}).get("files")
            return [self.path, self.config_name, self.revision, self.split, self.text_column, str(files)]
        return [self._dataset._fingerprint, self.text_column]


def load(path: str, name: str | None, revision: str | None, split: str, streaming: bool) -> Any:
    """One split of a dataset of the Hub or of a local folder, which `save_to_disk` may have written.

    Raises:
        UserError: if there is none, it can't be read, or what was asked for isn't in it.
        Failed: if the Hub can't be reached.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    quiet()
    if not sys.stderr.isatty():
        datasets.utils.disable_progress_bars()
    with told(f"{path} can't be loaded", A_COPY, reading=True):
        try:
            if any(Path(path, file).is_file() for file in SAVED_TO_DISK):
                return _from_disk(path, split, streaming)
            return datasets.load_dataset(path, name=name, revision=revision, split=split, streaming=streaming)
        except DatasetNotFoundError as error:
            raise UserError(_not_found(path, str(error).splitlines()[0].rstrip("."))) from None
        except Exception as error:
            # Files of every kind are read in there, by libraries that share no base class of errors.
            cause = error.__cause__ or error
            if (unreached := _unreached(error)) is not None:
                raise unreached from unreached.__cause__
            if of_the_network(error) or isinstance(error, (json.JSONDecodeError, MemoryError)):
                raise
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):  # of the disk
                raise
            raise UserError(f"{path} can't be loaded: {_why(path, split, error)}") from None


def _unreached(error: BaseException) -> BaseException | None:
    """What kept `datasets` from the Hub, where it says instead that there is no such folder here."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    found: BaseException | None = error
    while found is not None and not isinstance(found, LocalEntryNotFoundError):
        found = found.__cause__ or found.__context__
    return found


def _not_found(path: str, reason: str) -> str:
    """What to do about a data set that isn't there, or isn't there for everyone."""
    if "doesn't exist on the Hub" in reason and "Revision" not in reason:
        reason += "; check its name, and if it is private or gated log in (HF_TOKEN, or 'hf auth login')"
    return f"{path} can't be loaded: {reason}"


def _why(path: str, split: str, error: Exception) -> str:
    """What `datasets` says, in one line and with the setting that mends it."""
    cause = error.__cause__ or error
    said = [line.strip().rstrip(".") for line in str(cause).splitlines() if line.strip()]
    reason = said[0] if said else type(cause).__name__
    if reason.startswith("Config name is missing"):
        return f"{said[1][:1].lower()}{said[1][1:]} by data.config_name"
    if "BatchSize must be greater than 0" in reason:  # of a Parquet file without rows
        return "it is empty"
    if "[" in split and "split" in reason:
        return f"{reason}; a slice such as data.split={split} needs data.streaming=false"
    if reason.startswith(("Unknown split", "Bad split")):
        return f"{reason} (data.split, data.validation_split, data.test_split)"
    if reason.startswith("Dataset scripts are no longer supported"):
        return f"{reason}, and craft runs no code of a data set; ask its owner for text or Parquet files"
    if type(cause).__module__.startswith("yaml"):
        return f"the metadata in its README.md are no valid YAML ({reason})"
    foreign = "Couldn't cast" in reason or "any data file" in reason
    return reason + ("; for text or tables say data.source=files" if foreign and Path(path).exists() else "")


def _from_disk(path: str, split: str, streaming: bool) -> Any:
    import datasets

    found = datasets.load_from_disk(path)
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise ValueError(f"its splits are {', '.join(found)}, not {split!r}")
        found = found[split]
    elif split != "train":
        raise ValueError(f"it was saved as one dataset without splits, so there is no {split!r}")
    return found.to_iterable_dataset(num_shards=max(1, len(found) // ROWS)) if streaming else found


def unreachable(path: str, error: Exception) -> str:
    """The message for a URL that can't be fetched."""
    from huggingface_hub import constants

    why = (
        "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error.__cause__ or error).splitlines()[0]
    )
    return f"{path} can't be reached ({why}); {A_COPY}"


def rows(dataset: Any, column: str, name: str) -> Iterator[Piece]:
    """Every non-null text of a column, as one document each.

    Raises:
        UserError: if the column is missing or doesn't hold text.
        Failed: if the Hub can't be reached any more.
    """
    import pyarrow

    row = 0
    kind = (dataset.features or {}).get(column)
    if type(kind).__name__ == "Json":  # what datasets makes of texts among numbers or objects
        raise UserError(f"column {column!r} of {name} mixes texts with other values; make them all texts")
    try:
        for table in dataset.with_format("arrow").iter(batch_size=ROWS):
            if column not in table.column_names:
                raise missing_column(column, table.column_names, name)
            for text in table.column(column).to_pylist():
                if not isinstance(text, (str, type(None))):
                    kind = table.column(column).type
                    raise UserError(
                        f"column {column!r} of {name} holds {kind}, not text: choose another data.text_column"
                    )
                if text is not None:
                    yield Piece(text, f"row {row} of {name}", 0)
                row += 1
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        with told(f"{name} can't be read", A_COPY, reading=True):
            if of_the_network(error):
                raise
        raise UserError(f"{name} can't be read: {_why(name, '', error)}") from None


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


def hash_text(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
