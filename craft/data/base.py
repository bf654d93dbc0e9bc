"""An array of ids and how windows are cut from it."""

from __future__ import annotations

import mmap
import os
from typing import Any, Protocol

import numpy as np
import torch

from craft.utils.errors import UserError

# Larger maps are read by position instead: a page that is touched in a map brings up to two megabytes of its
# neighbours, all of which count as memory of this process until it gives them back.
MAPPED_BYTES = 1 << 28


class BaseDataset(Protocol):
    """What a train loader needs: the windows of some rows of a global batch."""

    block_size: int
    global_batch_size: int

    def batch(self, epoch: int, step: int, rows: np.ndarray) -> torch.Tensor:
        """LongTensor [len(rows), block_size + lookahead]: those rows of the global batch of a step."""


class TextDataset:
    """Windows of `block_size + lookahead` consecutive ids: no prediction is lost at their edges.

    Args:
        ids: 1-D array of any integer type, in memory or memory-mapped; it is never copied as a whole.
        block_size: T.
        lookahead: ids behind the T inputs, as the model's objective needs them.

    Raises:
        UserError: if the ids don't fill one window.
    """

    def __init__(self, ids: np.ndarray, block_size: int, lookahead: int = 1) -> None:
        # np.memmap runs Python code on every slice; a plain view of the same memory doesn't.
        self.ids = np.asarray(ids).view(np.ndarray)
        self.block_size, self.width = block_size, block_size + lookahead
        if len(self.ids) < self.width:
            raise UserError(
                f"{len(self.ids)} characters don't fill a window of data.block_size={block_size} and the "
                f"character behind it; make data.block_size at most {len(self.ids) - lookahead}",
                code="text-short",
            )
        self._windows = np.lib.stride_tricks.sliding_window_view(self.ids, self.width)
        self._file = _FileOf.array(ids) if self.ids.nbytes > MAPPED_BYTES else None

    def windows(self, starts: np.ndarray) -> torch.Tensor:
        """LongTensor [len(starts), block_size + lookahead]: the ids from each start on."""
        if self._file is None:
            return torch.from_numpy(self._windows[starts].astype(np.int64))
        return torch.from_numpy(self._file.rows(starts, self.width).astype(np.int64))


class _FileOf:
    """The file behind a memory-mapped array, read by position: as fast for any size, and without a page of it
    in this process' memory."""

    def __init__(self, mapped: np.memmap, offset: int, dtype: np.dtype) -> None:
        self.file = open(mapped.filename, "rb", buffering=0)  # type: ignore[arg-type]  # noqa: SIM115
        self.offset, self.dtype = offset, dtype

    @classmethod
    def array(cls, ids: np.ndarray) -> _FileOf | None:
        """None for arrays in memory, those that may be written, and where the system can't."""
        base: Any = ids
        while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
            base = base.base
        if not isinstance(base, np.memmap) or ids.flags.writeable or not hasattr(os, "preadv"):
            return None
        into = ids.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        return cls(base, base.offset + into, ids.dtype)

    def rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """[len(starts), length]: the elements from each start on."""
        rows = np.empty((len(starts), length), self.dtype)
        file, size = self.file.fileno(), length * self.dtype.itemsize
        for row, place in zip(rows, (starts * self.dtype.itemsize + self.offset).tolist()):
            if os.preadv(file, [row], place) != size:
                raise UserError(
                    f"{self.file.name} became shorter while it was being read", code="text-changed"
                )
        return rows


def release(ids: np.ndarray) -> None:
    """Takes the pages of memory-mapped ids out of this process' memory; they stay in the system's cache.

    Without it a run over a corpus larger than memory would look as if it needed all of it, and be stopped in
    places that limit resident memory. Does nothing for arrays that may be written or where the system can't.
    """
    base: Any = None if ids.flags.writeable else ids
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
