"""Which windows make up the global batch of a step: shuffled blocks, random crops, or parallel streams.

Design: the order is a pure function of (seed, epoch, step). It doesn't know how many processes or
accumulation steps share the work, so the same run on other hardware sees the same batches, and a resumed run
continues exactly where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from craft.data.base import BaseDataset, IdsOnDisk, map_of
from craft.data.order import permuted, random_integers
from craft.utils.errors import UserError

ORDERS = ("shuffled", "random", "streams")
WINDOWS_AT_ONCE = 4096
MAPPED_BYTES = 1 << 28
"""Larger maps are read by position instead: their pages would count as memory of this process."""


class CharDataset:
    """The windows of every step: `block_size + lookahead` consecutive ids, so that no prediction is lost at
    their edges.

    Orders:
        shuffled: an epoch cuts the corpus into non-overlapping windows from a random phase and visits them in
            random order; each at most once, all of them but the remainder of the last batch.
        random: independent uniform offsets, as nanoGPT draws them.
        streams: for models that carry their state. Row j is stream j, one of `global_batch_size` contiguous
            stretches; step k is chunk k of each, and the state is zero at step 0 of an epoch.

    Args:
        ids: 1-D array of any integer type, in memory or memory-mapped; it is never copied as a whole.
        block_size: T.
        global_batch_size: windows per optimizer step, over all processes and accumulation steps.
        seed: decides the order, together with epoch and step.
        lookahead: ids of a window behind its T inputs.

    Raises:
        UserError: if the corpus is too short for the windows or the batch.
    """

    def __init__(
        self,
        ids: np.ndarray,
        block_size: int,
        global_batch_size: int,
        seed: int,
        order: str = "shuffled",
        lookahead: int = 1,
    ) -> None:
        if order not in ORDERS:
            raise UserError(f"data.order={order!r} is none of {', '.join(ORDERS)}", code="setting-value")
        # Less than a whole window is given up, so that every phase in [0, T) has the same number of windows.
        self._n_starts = len(ids) + 1 - lookahead
        self._n_windows = self._n_starts // block_size - 1
        largest = self._n_starts // (global_batch_size + 1)
        if order == "random":
            self._n_windows, largest = max(self._n_windows, global_batch_size), self._n_starts - 1
        if largest < block_size:
            raise UserError(
                f"{len(ids)} characters of training text are too few for a global batch of "
                f"{global_batch_size} windows of data.block_size={block_size}; make the batch smaller, or "
                f"data.block_size at most {largest}",
                code="text-short",
            )
        # np.memmap runs Python code on every slice; a plain view of the same memory doesn't.
        self.ids = np.asarray(ids).view(np.ndarray)
        self.block_size, self.width = block_size, block_size + lookahead
        self._windows = np.lib.stride_tricks.sliding_window_view(self.ids, self.width)
        self.global_batch_size, self.seed, self.order = global_batch_size, seed, order
        by_position = ids.nbytes > MAPPED_BYTES and map_of(ids) and hasattr(os, "preadv")
        self._file = IdsOnDisk(ids) if by_position else None
        self.steps_per_epoch = self._n_windows // global_batch_size
        # numpy's overhead per call is that of thousands of windows: compute several steps at once.
        self._steps_per_block = max(1, WINDOWS_AT_ONCE // global_batch_size)
        self._block_of: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Windows per epoch."""
        return self.steps_per_epoch * self.global_batch_size

    def windows(self, starts: np.ndarray) -> torch.Tensor:
        """LongTensor [len(starts), block_size + lookahead]: the ids from each start on."""
        if self._file is None:
            return torch.from_numpy(self._windows[starts].astype(np.int64))
        return torch.from_numpy(self._file.windows(starts, self.width).astype(np.int64))

    def starts(self, epoch: int, step: int) -> np.ndarray:
        """int64 [global_batch_size]: where the windows of a step start in the ids.

        Args:
            step: within the epoch, 0 <= step < steps_per_epoch.
        """
        block, place = divmod(step, self._steps_per_block)
        if self._block_of != (epoch, block):
            steps = block * self._steps_per_block + np.arange(self._steps_per_block)
            self._block = self._starts(epoch, steps[:, None], np.arange(self.global_batch_size))
            self._block_of = (epoch, block)
        return self._block[place]

    def _starts(self, epoch: int, steps: np.ndarray, rows: np.ndarray) -> np.ndarray:
        n, size = self._n_starts, self.block_size
        if self.order == "random":
            return random_integers(n - size, self.seed, epoch, steps, rows)
        if self.order == "streams":
            length = self.steps_per_epoch * size
            phase = random_integers(n - self.global_batch_size * length, self.seed, epoch)
            return phase + rows * length + steps * size
        window = (steps * self.global_batch_size + rows) % self._n_windows  # a block may reach past the epoch
        phase = random_integers(size, self.seed, epoch)
        return phase + permuted(window, self._n_windows, self.seed, epoch) * size

    def batch(self, epoch: int, step: int, rows: np.ndarray) -> torch.Tensor:
        """LongTensor [len(rows), T + lookahead]: those rows of the global batch of a step."""
        return self.windows(self.starts(epoch, step)[rows])


class TrainLoader(DataLoader):
    """Micro-batches of one process; `set_epoch` chooses the order. Not to be prepared by Accelerate."""

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration draws."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def train_loader(
    dataset: BaseDataset,
    per_device_batch_size: int,
    accumulation: int,
    rank: int,
    world: int,
    make_batch: Callable[[torch.Tensor], dict[str, Any]],
) -> TrainLoader:
    """The micro-batches of process `rank` of `world`.

    Row j of the global batch belongs to micro-batch g, process r, row b with j = (g * world + r) * B + b.

    Args:
        make_batch: the model's, which makes of windows what it takes.

    Returns:
        A loader of dicts: what `make_batch` gives, `step_in_epoch`, `micro_step`. It has steps_per_epoch *
        accumulation of them; over a stream it has no length.

    Raises:
        ValueError: if the processes and accumulation steps don't add up to the dataset's global batch.
    """
    parts = per_device_batch_size * accumulation * world
    if parts != dataset.global_batch_size:
        raise ValueError(
            f"{per_device_batch_size} rows x {accumulation} accumulation steps x {world} processes "
            f"= {parts}, but the global batch is {dataset.global_batch_size}"
        )
    rows = [
        np.arange(per_device_batch_size) + (g * world + rank) * per_device_batch_size
        for g in range(accumulation)
    ]
    batches = _MicroBatches(dataset, rows, make_batch)
    return TrainLoader(
        batches,
        batch_sampler=_EpochSampler(batches.per_epoch),
        collate_fn=itemgetter(0),
        pin_memory=torch.cuda.is_available(),
    )


class _MicroBatches(Dataset):
    """Micro-batch `i` of the whole run: epoch i // per_epoch, and the place in it."""

    def __init__(
        self,
        dataset: BaseDataset,
        rows: list[np.ndarray],
        make_batch: Callable[[torch.Tensor], dict[str, Any]],
    ) -> None:
        self.dataset, self.rows, self.make_batch = dataset, rows, make_batch
        steps = getattr(dataset, "steps_per_epoch", None)
        self.per_epoch = None if steps is None else steps * len(rows)

    def __len__(self) -> int:
        """Windows per epoch over all processes, as the Trainer reports them."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, micro = divmod(index, self.per_epoch) if self.per_epoch else (0, index)
        step, micro_step = divmod(micro, len(self.rows))
        windows = self.dataset.batch(epoch, step, self.rows[micro_step])
        return {**self.make_batch(windows), "step_in_epoch": step, "micro_step": micro_step}


class _EpochSampler(BatchSampler):
    """Batches of one index, numbered through all epochs: the index alone says what to draw.

    `skip_first_batches` steps over the batches it skips one by one; `zip` over a range keeps that in C,
    30 ns a batch, and no window is cut.
    """

    def __init__(self, per_epoch: int | None) -> None:
        self.per_epoch, self.epoch = per_epoch, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.per_epoch is None:
            raise TypeError("a stream has no length; set training.max_steps")
        return self.per_epoch

    def __iter__(self) -> Iterator[Any]:
        if self.per_epoch is None:
            return zip(range(2**62))
        return zip(range(self.epoch * self.per_epoch, (self.epoch + 1) * self.per_epoch))
