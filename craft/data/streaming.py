"""Training while reading: nothing is prepared on the disk, and the order is still exactly reproducible.

A stream is taken apart into shards (parts of a file, row groups, files) that can be read by themselves. Each
pass spreads them, in a new random order, over a fixed number of *lanes*; row j of every global batch is fed
by lane `j * lanes // rows`. A process reads the lanes of its rows and no others. Inside a lane windows are
shuffled in consecutive blocks. All of it depends on (seed, pass, lane) alone and never on the number of
processes, so other hardware sees the same batches.

Lanes don't wait for each other: each begins its next pass when it has read its shards, which are spread so
that this happens at about the same time. (To end a pass at the same step everywhere, every process would have
to know how long the text of every shard is, which only reading tells.)

To resume is to find the place of a step. The lengths of the shards that were read so far make that a matter
of arithmetic; they are the one thing that a checkpoint keeps. Without them the place is found by reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, count, islice

import numpy as np
import torch
from torch import Tensor

from craft.data.order import balanced_shards, permuted
from craft.data.prepare import encoded
from craft.data.sources import Shard, Source
from craft.data.tokenization import CharTokenizer
from craft.utils.errors import UserError

SHARD_BYTES = 1 << 20  # shards are at least so long, and long enough for this many windows:
WINDOWS_PER_SHARD = 64
MOST_SHARDS = 1 << 16
IDS_PER_BLOCK = 1 << 20  # how much a lane shuffles at once
EMPTY_PASSES = 100


@dataclass(frozen=True)
class TextStream:
    """The training ids of a source, read anew on every pass.

    Args:
        shards: the parts of the source that are trained on, in order.
        documents: whether `<eos>` ends each piece.
        skip: how many ids of the first shard are held out (validation and test).
    """

    shards: Sequence[Shard]
    documents: bool
    tokenizer: CharTokenizer
    skip: int = 0

    @classmethod
    def of(cls, source: Source, tokenizer: CharTokenizer, block_size: int) -> TextStream:
        """All of a source, in shards for windows of `block_size`."""
        size = max(SHARD_BYTES, WINDOWS_PER_SHARD * block_size)
        while len(shards := source.shards(size)) > MOST_SHARDS:
            size *= 4
        return cls(shards, source.documents, tokenizer)

    def blocks(self) -> Iterator[np.ndarray]:
        """1-D id arrays of all shards, in order."""
        return chain.from_iterable(self.shard(i) for i in range(len(self.shards)))

    def shard(self, index: int) -> Iterator[np.ndarray]:
        """The id arrays of one shard."""
        skip = self.skip if index == 0 else 0
        for block in encoded(self.shards[index].pieces(), self.documents, self.tokenizer):
            yield block[min(skip, len(block)) :]
            skip = max(0, skip - len(block))

    def without_first(self, n: int) -> TextStream:
        """The stream without its first n ids."""
        for index in range(len(self.shards)):
            length = 0
            for block in self.shard(index):
                length += len(block)
                if length > n:
                    skip = n + (self.skip if index == 0 else 0)
                    return replace(self, shards=self.shards[index:], skip=skip)
            n -= length
        return replace(self, shards=[], skip=0)


class StreamDataset:
    """The windows of every step of a stream; the same interface to `train_loader` as `CharDataset`.

    It has no epochs and no length: lanes start over when they end, and training stops at `max_steps`. Windows
    are drawn forward; for any other step the place is looked up.

    Args:
        stream: the training ids.
        block_size: T; windows hold T + lookahead ids and begin T apart, so every id of a lane but the first
            is predicted. Less than a window at the end of a lane's pass is left out.
        global_batch_size: windows per optimizer step, over all processes and accumulation steps.
        seed: decides the order.
        lanes: how many places are read at once; fewer if there are fewer shards or rows.

    Raises:
        UserError: if the stream doesn't fill a window.
    """

    def __init__(
        self,
        stream: TextStream,
        block_size: int,
        global_batch_size: int,
        seed: int,
        lanes: int = 16,
        lookahead: int = 1,
    ) -> None:
        if not stream.shards:
            raise _too_short(block_size)
        self.stream = stream
        self.block_size, self.lookahead = block_size, lookahead
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.n_lanes = min(lanes, len(stream.shards), global_batch_size)
        self.lengths = np.full(len(stream.shards), -1, np.int64)  # of shards in ids, where they are known
        self._lanes: dict[int, _Lane] = {}
        sizes = [shard.size for shard in stream.shards]
        # Lanes are in the same pass or in neighbouring ones.
        self._spread = lru_cache(3)(partial(balanced_shards, sizes, self.n_lanes, seed))

    def batch(self, epoch: int, step: int, rows: np.ndarray) -> Tensor:
        """LongTensor [len(rows), T + lookahead]: those rows of the global batch of a step of the run."""
        windows = np.empty((len(rows), self.block_size + self.lookahead), np.int64)
        lanes = self.lanes_of(rows)
        for number in np.unique(lanes).tolist():
            if number not in self._lanes:
                self._lanes[number] = _Lane(self, number)
            windows[lanes == number] = self._lanes[number].rows(step, rows[lanes == number])
        return torch.from_numpy(windows)

    def lanes_of(self, rows: np.ndarray) -> np.ndarray:
        """Which lane feeds each row of the global batch."""
        return rows * self.n_lanes // self.global_batch_size

    def shards_of(self, lane: int, number: int) -> list[int]:
        """The shards that a lane reads in a pass, in order."""
        return self._spread(number)[lane]

    def state_dict(self) -> dict[str, Tensor]:
        """What this process found out; with it a resumed run finds its place without reading."""
        return {"stream_lengths": torch.from_numpy(self.lengths)}

    def load_rank_states(self, per_process: Sequence[dict[str, Tensor]], rank: int) -> None:
        """Takes over what the processes of an earlier run found out about the same shards."""
        for saved in per_process:
            lengths = saved.get("stream_lengths")
            if lengths is not None and lengths.shape == self.lengths.shape:
                self.lengths = np.maximum(self.lengths, lengths.numpy())


class _Lane:
    """The windows of one lane, in order and without end."""

    def __init__(self, dataset: StreamDataset, number: int) -> None:
        self.dataset, self.number = dataset, number
        n_rows, n_lanes = dataset.global_batch_size, dataset.n_lanes
        self.first = -(-number * n_rows // n_lanes)  # its rows in the global batch, and how many
        self.width = -(-(number + 1) * n_rows // n_lanes) - self.first
        self.block = max(1, IDS_PER_BLOCK // dataset.block_size)  # windows that are shuffled together
        self._step = -2
        self._drawn = np.empty((0, 0))
        self._windows: Iterator[np.ndarray] = iter(())

    def rows(self, step: int, rows: np.ndarray) -> np.ndarray:
        """Windows [len(rows), T + lookahead] of a step, for rows of the global batch that this lane feeds."""
        if step != self._step:
            if step != self._step + 1:
                self._windows = self._from(step * self.width)
            self._drawn = np.stack(list(islice(self._windows, self.width)))
            self._step = step
        return self._drawn[rows - self.first]

    def _from(self, window: int) -> Iterator[np.ndarray]:
        """The windows from a number on: each pass visits every window of its shards once, block by block."""
        empty, size = 0, self.dataset.block_size
        for number in count():
            shards, block = self.dataset.shards_of(self.number, number), window // self.block
            first = block * self.block
            for windows in self._blocks(self._ids(shards, first * size)):
                keys = self.dataset.seed, number, self.number, block
                order = permuted(np.arange(len(windows)), len(windows), *keys)
                yield from windows[order[max(0, window - first) :]]
                first, block = first + len(windows), block + 1
            n_windows = max(0, int(self.dataset.lengths[shards].sum()) - self.dataset.lookahead) // size
            window = max(0, window - n_windows)
            empty = 0 if n_windows else empty + 1
            if empty == EMPTY_PASSES:
                raise _too_short(size)

    def _ids(self, shards: Sequence[int], skip: int) -> Iterator[np.ndarray]:
        """The id arrays of `shards` behind the first `skip` ids. Those that are known to lie before aren't
        read; the lengths of the others are noted in passing."""
        lengths = self.dataset.lengths
        for shard in shards:
            if 0 <= lengths[shard] <= skip:
                skip -= lengths[shard]
                continue
            length = 0
            for block in self.dataset.stream.shard(shard):
                yield block[min(skip, len(block)) :]
                skip = max(0, skip - len(block))
                length += len(block)
            lengths[shard] = length

    def _blocks(self, arrays: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Windows in arrays [<= block, T + lookahead]; an unfilled window at the end is left."""
        size, ahead = self.dataset.block_size, self.dataset.lookahead
        wanted = self.block * size + ahead
        pending = np.empty(0, self.dataset.stream.tokenizer.processor.dtype)
        for array in arrays:
            pending = np.concatenate([pending, array])
            while len(pending) >= wanted:
                yield np.lib.stride_tricks.sliding_window_view(pending[:wanted], size + ahead)[::size]
                pending = pending[self.block * size :]
        if len(pending) >= size + ahead:
            yield np.lib.stride_tricks.sliding_window_view(pending, size + ahead)[::size]


def _too_short(block_size: int) -> UserError:
    return UserError(
        f"the stream ends before it fills a window of data.block_size={block_size}; "
        "make it or data.validation_size smaller",
        code="text-short",
    )
