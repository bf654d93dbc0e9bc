"""Datasets of the Hugging Face Hub, or of local folders in its formats, as sources; read by `datasets`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from craft.data.columns import Column, column_texts, missing_column
from craft.data.sources import Piece, Unit
from craft.data.tables import ROWS
from craft.utils.errors import UserError
from craft.utils.hub import is_network_error, quiet, translate_hub_errors

A_COPY = "with a copy here use data.source=files data.path=/path/to/copy"
# Datasets of more files than this aren't asked for the parts of each, which takes a request a file.
MANY_FILES = 256
MOST_UNITS = 4096
SAVED_TO_DISK = ("dataset_dict.json", "state.json")  # what `Dataset.save_to_disk` leaves in its folder


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
    uses = ("text_column",)

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


def rows(dataset: Any, column: str, name: str) -> Iterator[Piece]:
    """Every non-null text of a column, or of a path into one, as one document each.

    Raises:
        UserError: if the column is missing or doesn't hold text.
        Failed: if the Hub can't be reached any more.
    """
    import pyarrow

    kind = (dataset.features or {}).get(column)
    if type(kind).__name__ == "Json":  # what datasets makes of texts among numbers or objects
        raise UserError(f"column {column!r} of {name} mixes texts with other values; make them all texts")
    try:
        tables = iter(dataset.with_format("arrow").iter(batch_size=ROWS))
        if (first := next(tables, None)) is None:
            return
        found = Column(column, first.column_names)
        cells = _cells(chain([first], tables), found.top, name)
        for text, where in column_texts(cells, found, name, "strict"):
            yield Piece(text, where, 0)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        with translate_hub_errors(f"{name} can't be read", A_COPY):
            if is_network_error(error):
                raise
        raise UserError(f"{name} can't be read: {_why(name, '', error)}") from None


def _cells(tables: Iterable[Any], column: str, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    row = 0
    for table in tables:
        if column not in table.column_names:
            raise missing_column(column, table.column_names, name)
        for value in table.column(column).to_pylist():
            yield {column: value}, f"row {row} of {name}"
            row += 1


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
    with translate_hub_errors(f"{path} can't be loaded", A_COPY, revision=revision):
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
            if is_network_error(error) or isinstance(error, (json.JSONDecodeError, MemoryError)):
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
