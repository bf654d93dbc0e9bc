"""An array of ids and how windows are cut from it."""

from __future__ import annotations

import mmap
from typing import Any, Protocol

import numpy as np
import torch

from craft.utils.common import UserError

# A window that is read maps up to 16 pages around it, all of which count as memory of this process.
WINDOWS_MAPPED = 2048


class BaseDataset(Protocol):
    """What a train loader needs: the windows of some rows of a global batch."""

    block_size: int
    global_batch_size: int

    def batch(self, epoch: int, step: int, rows: np.ndarray) -> torch.Tensor:
        """LongTensor [len(rows), block_size + 1]: those rows of the global batch of a step."""


class TextDataset:
    """Windows of `block_size + 1` consecutive ids: T inputs and T targets, no prediction lost at the edges.

    Args:
        ids: 1-D array of any integer type, in memory or memory-mapped; it is never copied as a whole.
        block_size: T.

    Raises:
        UserError: if the ids don't fill one window.
    """

    def __init__(self, ids: np.ndarray, block_size: int) -> None:
        # np.memmap runs Python code on every slice; a plain view of the same memory doesn't.
        self.ids = np.asarray(ids).view(np.ndarray)
        self.block_size = block_size
        if len(self.ids) <= block_size:
            raise UserError(
                f"{len(self.ids)} characters don't fill a window of data.block_size={block_size} and the "
                f"character behind it; the largest block_size that works is {len(self.ids) - 1}"
            )
        self._windows = np.lib.stride_tricks.sliding_window_view(self.ids, block_size + 1)
        self._read = 0

    def windows(self, starts: np.ndarray) -> torch.Tensor:
        """LongTensor [len(starts), block_size + 1]: the ids from each start on."""
        self._read += len(starts)
        if self._read >= WINDOWS_MAPPED:
            release(self.ids)
            self._read = 0
        return torch.from_numpy(self._windows[starts].astype(np.int64))


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
