"""Training while reading: nothing is prepared on the disk, and the order is still exactly reproducible.

Windows are cut from the stream in order and shuffled inside consecutive buffers, by a permutation that
depends on (seed, pass over the stream, number of the buffer) alone. To resume is to read forward to the
same place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from craft.data.arguments import DataArguments
from craft.data.order import permuted
from craft.data.prepare import count_characters, encoded
from craft.data.processors import FIRST_ID
from craft.data.sources import Source
from craft.data.tokenization import ByteTokenizer, CharTokenizer
from craft.utils.common import UserError

# A character met later than this is unknown to the alphabet, so `strict` can't be promised on a stream.
ALPHABET_CHARACTERS = 10_000_000
# A fraction of a stream of unknown length means nothing: this many ids instead.
VALIDATION_IDS = 1_000_000
WINDOWS_PER_BUFFER = 4096


@dataclass(frozen=True)
class TextStream:
    """The training ids of a source, read anew on every pass.

    Args:
        skip: how many ids from the beginning are held out (validation and test).
    """

    source: Source
    tokenizer: CharTokenizer
    skip: int = 0

    def blocks(self) -> Iterator[np.ndarray]:
        """1-D id arrays, in order, behind the held-out ids."""
        left = self.skip
        for block in encoded(self.source, self.tokenizer):
            if left < len(block):
                yield block[left:]
            left = max(0, left - len(block))


class StreamDataset:
    """The windows of every step of a stream; the same interface to `train_loader` as `CharDataset`.

    It has no epochs and no length: the stream starts over when it ends, and training stops at `max_steps`.
    Rows are drawn forward; asking for an earlier step reads the stream from its beginning.

    Args:
        stream: the training ids.
        block_size: T; windows hold T + 1 ids and overlap by one, so every id but the first is predicted.
        global_batch_size: windows per optimizer step, over all processes and accumulation steps.
        seed: decides the order inside the buffers.
    """

    def __init__(self, stream: TextStream, block_size: int, global_batch_size: int, seed: int) -> None:
        self.stream = stream
        self.block_size = block_size
        self.global_batch_size = global_batch_size
        self.seed = seed
        self._step = -1
        self._rows = np.empty((0, block_size + 1), np.int64)
        self._windows = self._shuffled()

    def batch(self, epoch: int, step: int, rows: np.ndarray) -> torch.Tensor:
        """LongTensor [len(rows), T + 1]: those rows of the global batch of a step, counted from the first."""
        if step < self._step:
            self._step, self._windows = -1, self._shuffled()
        while self._step < step:
            self._rows = np.stack(list(islice(self._windows, self.global_batch_size)))
            self._step += 1
        return torch.from_numpy(self._rows[rows].astype(np.int64))

    def _shuffled(self) -> Iterator[np.ndarray]:
        """Windows without end: each pass visits every window of the stream once, buffer by buffer."""
        pass_number = 0
        while True:
            empty = True
            for number, buffer in enumerate(self._buffers()):
                order = permuted(np.arange(len(buffer)), len(buffer), self.seed, pass_number, number)
                yield from buffer[order]
                empty = False
            if empty:
                raise UserError(
                    f"the stream ends before it fills a window of data.block_size={self.block_size}; "
                    "make it or data.validation_size smaller"
                )
            pass_number += 1

    def _buffers(self) -> Iterator[np.ndarray]:
        """One pass in arrays [<= WINDOWS_PER_BUFFER, T + 1]; an unfilled window at the end is left."""
        size, wanted = self.block_size, WINDOWS_PER_BUFFER * self.block_size + 1
        pending = np.empty(0, self.stream.tokenizer.processor.dtype)
        for block in self.stream.blocks():
            pending = np.concatenate([pending, block])
            while len(pending) >= wanted:
                yield np.lib.stride_tricks.sliding_window_view(pending[:wanted], size + 1)[::size]
                pending = pending[wanted - 1 :]
        if len(pending) > size:
            yield np.lib.stride_tricks.sliding_window_view(pending, size + 1)[::size]


def open_stream(
    args: DataArguments, source: Source, own: dict[str, Source], tokenizer: CharTokenizer | None
) -> tuple[CharTokenizer, TextStream, np.ndarray | None, np.ndarray | None]:
    """(tokenizer, train, validation, test) of a streamed corpus; the held-out splits are arrays.

    Args:
        own: the dataset's own `validation` and `test` splits; the others are taken from the stream's start.

    Raises:
        UserError: if the alphabet can't be known in advance, or the stream is too short.
    """
    tokenizer = tokenizer or _stream_tokenizer(args, source)
    arrays: dict[str, np.ndarray | None] = {"validation": None, "test": None}
    skip = 0
    for split, size in (("validation", args.validation_size), ("test", args.test_size)):
        if split in own:
            arrays[split] = np.concatenate(list(encoded(own[split], tokenizer)))
        elif size:
            wanted = int(size) if size >= 1 else VALIDATION_IDS
            first = _first(TextStream(source, tokenizer, skip), wanted)
            if len(first) < wanted:
                raise UserError(
                    f"{args.path} ends within the first {skip + wanted} characters, which "
                    f"data.{split}_size={size} holds out of a stream; give a smaller count, or set "
                    "data.streaming=false"
                )
            arrays[split] = first
            skip += len(first)
    for split, array in arrays.items():
        if array is not None and len(array) <= args.block_size:
            raise UserError(
                f"the {split} split of {args.path} has {len(array)} characters, too few for "
                f"data.block_size={args.block_size}; the largest that works is {len(array) - 1}"
            )
    return tokenizer, TextStream(source, tokenizer, skip), arrays["validation"], arrays["test"]


def _first(stream: TextStream, wanted: int) -> np.ndarray:
    """The first `wanted` ids, and up to three more to the end of a character in bytes."""
    blocks: list[np.ndarray] = []
    size = 0
    for block in stream.blocks():
        blocks.append(block)
        size += len(block)
        if size >= wanted + 3:
            break
    array = np.concatenate(blocks) if blocks else np.empty(0, np.uint8)
    end = wanted
    if stream.tokenizer.unknown == "bytes":
        while end < len(array) and FIRST_ID + 0x80 <= array[end] < FIRST_ID + 0xC0:
            end += 1
    return array[:end]


def _stream_tokenizer(args: DataArguments, source: Source) -> CharTokenizer:
    if args.tokenizer == "byte":
        return ByteTokenizer.create()
    if args.unknown == "strict":
        raise UserError(
            "the alphabet of a stream isn't known in advance, so data.unknown=strict can't hold; "
            "use data.tokenizer=byte, or data.unknown=bytes (lossless), or data.unknown=unk"
        )

    def beginning() -> Iterator[str]:
        read = 0
        for piece in source.pieces():
            yield piece.text[: ALPHABET_CHARACTERS - read]
            read += len(piece.text)
            if read >= ALPHABET_CHARACTERS:
                return

    counts = count_characters(beginning())
    if not counts:
        raise UserError(f"data.path={args.path} is empty")
    return CharTokenizer.from_counts(counts, args.unknown, args.min_frequency, args.max_vocab_size)
