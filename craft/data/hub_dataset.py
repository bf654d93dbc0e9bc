"""Datasets of the Hugging Face Hub, or of local folders in its formats, as sources; read by `datasets`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import starmap
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from craft.data.sources import Piece, Shard
from craft.data.tables import ROWS, arrow_texts
from craft.utils.errors import CraftError, UserError, one_line
from craft.utils.hub import is_network_error, quiet, translate_hub_errors

LOCAL_COPY_HINT = "with a copy here use data.source=files data.path=/path/to/copy"
# Datasets of more files than this aren't asked for the parts of each, which takes a request a file.
MANY_FILES = 256
MOST_SHARDS = 4096
SAVED_TO_DISK = ("dataset_dict.json", "state.json")  # what `Dataset.save_to_disk` leaves in its folder

CHOICE_HINT = (
    "data.config_name, data.revision and data.split choose what is read (a slice such as train[:50%] needs "
    "data.streaming=false); for text or tables say data.source=files"
)


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
        import datasets

        quiet()
        if not sys.stderr.isatty():
            datasets.utils.disable_progress_bars()
        with _translated(f"{self.path} can't be loaded", self.revision):
            if any(Path(self.path, file).is_file() for file in SAVED_TO_DISK):
                self._dataset = _from_disk(self.path, self.split, self.streaming)
            else:
                which = {"name": self.config_name, "revision": self.revision, "split": self.split}
                self._dataset = datasets.load_dataset(self.path, streaming=self.streaming, **which)

    def pieces(self) -> Iterator[Piece]:
        return self._pieces(self._dataset)

    def shards(self, size: int) -> list[Shard]:
        dataset = self._dataset  # which streams: nobody asks otherwise
        if dataset.num_shards <= MANY_FILES:
            dataset = dataset.reshard()  # Parquet by row groups instead of files
        count = min(dataset.num_shards, MOST_SHARDS)

        def shard(index: int) -> Shard:
            return Shard(1, lambda: self._pieces(dataset.shard(num_shards=count, index=index)))

        return [shard(i) for i in range(count)]

    def signature(self) -> list[Any]:
        if self.streaming:  # datasets has no fingerprint for these
            return [self.path, self.config_name, self.revision, self.split, self.text_column]
        return [self._dataset._fingerprint, self.text_column]

    def _pieces(self, dataset: Any) -> Iterator[Piece]:
        """Every non-null text of the column as one document each."""
        name = f"{self.path}[{self.split}]"
        if type((dataset.features or {}).get(self.text_column)).__name__ == "Json":
            raise UserError(
                f"column {self.text_column!r} of {name} mixes texts with other values; make them all texts",
                code="text-column",
            )
        with _translated(f"{name} can't be read", self.revision):
            batches = dataset.with_format("arrow").iter(batch_size=ROWS)
            yield from starmap(Piece, arrow_texts(batches, self.text_column, name, "strict"))


@contextmanager
def _translated(what: str, revision: str | None) -> Iterator[None]:
    """Turns whatever `datasets` raises into one line: files of every kind are read in there, by libraries
    that share no base class of errors.

    Raises:
        UserError: if there is no such dataset, it can't be read, or what was asked for isn't in it.
        Failed: if the Hub can't be reached.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    with translate_hub_errors(what, LOCAL_COPY_HINT, revision=revision):
        try:
            yield
        except CraftError:
            raise
        except Exception as error:
            unreached: BaseException | None = error  # of which `datasets` says that there is no such folder
            while unreached is not None and not isinstance(unreached, LocalEntryNotFoundError):
                unreached = unreached.__cause__ or unreached.__context__
            if unreached:
                raise unreached from unreached.__cause__
            cause = error.__cause__ or error
            of_the_disk = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
            if of_the_disk or is_network_error(error) or isinstance(error, JSONDecodeError | MemoryError):
                raise
            reason = one_line(cause)[:400]
            hint = "check its name, and if it is private or gated log in (HF_TOKEN, or 'hf auth login')"
            raise UserError(
                f"{what}: {reason}; {hint if 'on the Hub' in reason else CHOICE_HINT}", code="data-invalid"
            ) from None


def _from_disk(path: str, split: str, streaming: bool) -> Any:
    """What `save_to_disk` wrote: a dataset, or a folder of datasets, one for each split."""
    from datasets import load_from_disk

    several = Path(path, SAVED_TO_DISK[0]).is_file()
    if not several and split != "train":
        raise ValueError(f"it was saved as one dataset without splits, so there is no {split!r}")
    found = load_from_disk(str(Path(path, split)) if several else path)
    return found.to_iterable_dataset(num_shards=max(1, len(found) // ROWS)) if streaming else found
