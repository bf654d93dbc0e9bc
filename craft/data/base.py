"""What a data set of windows is, and how the ids behind one are read without keeping them in memory."""

from __future__ import annotations

import mmap
import os
from typing import Any, Protocol

import numpy as np
import torch

from craft.utils.errors import UserError


class BaseDataset(Protocol):
    """What a train loader needs: the windows of some rows of a global batch."""

    block_size: int
    global_batch_size: int

    def batch(self, epoch: int, step: int, rows: np.ndarray) -> torch.Tensor:
        """LongTensor [len(rows), block_size + lookahead]: those rows of the global batch of a step."""


class IdsOnDisk:
    """The file behind a memory-mapped array, read by position: as fast for any size, and without a page of it
    in this process' memory. (A page that is touched in a map brings up to two megabytes of its neighbours.)

    Args:
        ids: a read-only map, or a part of one.
    """

    def __init__(self, ids: np.ndarray) -> None:
        base: Any = ids
        while isinstance(base.base, np.ndarray):
            base = base.base
        self.file = open(base.filename, "rb", buffering=0)  # noqa: SIM115
        into = ids.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        self.offset, self.dtype = base.offset + into, ids.dtype

    def windows(self, starts: np.ndarray, width: int) -> np.ndarray:
        """[len(starts), width]: the ids from each start on."""
        rows = np.empty((len(starts), width), self.dtype)
        for row, place in zip(rows, (starts * self.dtype.itemsize + self.offset).tolist()):
            if os.preadv(self.file.fileno(), [row], place) != row.nbytes:
                raise UserError(
                    f"{self.file.name} became shorter while it was being read", code="text-changed"
                )
        return rows


def map_of(ids: np.ndarray) -> mmap.mmap | None:
    """The read-only memory map that holds an array, if one does."""
    base: Any = None if ids.flags.writeable else ids
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def release_pages(ids: np.ndarray) -> None:
    """Takes the pages of memory-mapped ids out of this process' memory; they stay in the system's cache.

    Without it a run over a corpus larger than memory would look as if it needed all of it, and be stopped in
    places that limit resident memory. Does nothing for other arrays or where the system can't.
    """
    if (mapped := map_of(ids)) is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
