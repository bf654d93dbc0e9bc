"""What is taken off a stream before it is trained on: an alphabet from its beginning, and held-out splits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from craft.data.arguments import DataArguments
from craft.data.prepare import count_characters, encoded
from craft.data.sources import Source
from craft.data.streaming import TextStream
from craft.data.tokenization import ByteTokenizer, CharTokenizer
from craft.utils.errors import UserError

# A character met later than this is unknown to the alphabet, so `strict` can't be promised on a stream.
ALPHABET_CHARACTERS = 10_000_000
# A fraction of a stream of unknown length means nothing: this many ids, unless they are more than that.
VALIDATION_IDS = 1_000_000
# How far the end of a stream is looked for, to know that.
LENGTH_IDS = 10 * VALIDATION_IDS


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
    stream = TextStream.of(source, tokenizer, args.block_size)
    arrays: dict[str, np.ndarray | None] = {"validation": None, "test": None}
    sizes = {"validation": args.validation_size, "test": args.test_size}
    fractions = [size for split, size in sizes.items() if split not in own and 0 < size < 1]
    length = None
    if fractions:
        length = _length(stream, min(LENGTH_IDS, int(VALIDATION_IDS / min(fractions))))
    held_out = 0
    for split, size in sizes.items():
        if split in own:
            arrays[split] = np.concatenate([np.empty(0, np.uint8), *encoded(own[split], tokenizer)])
        elif size:
            wanted = int(size) if size >= 1 else VALIDATION_IDS
            if size < 1 and length is not None:
                wanted = min(wanted, int(size * length))
            first = _first(stream, wanted)
            held_out += wanted
            if len(first) < wanted:
                raise UserError(
                    f"{args.shown} ends within the first {held_out} characters, which "
                    f"data.{split}_size={size} holds out of a stream; give a smaller count, or set "
                    "data.streaming=false"
                )
            arrays[split] = first
            stream = stream.behind(len(first))
    for split, array in arrays.items():
        if array is not None and len(array) <= args.block_size:
            raise UserError(
                f"the {split} split of {args.shown} has {len(array)} characters, too few for "
                f"data.block_size={args.block_size}; the largest that works is {len(array) - 1}"
            )
    return tokenizer, stream, arrays["validation"], arrays["test"]


def _length(stream: TextStream, most: int) -> int | None:
    """How many ids a stream holds; None if more than `most`."""
    length = 0
    for block in stream.blocks():
        length += len(block)
        if length > most:
            return None
    return length


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
    return array[: stream.tokenizer.processor.boundary(array, wanted)]


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
        raise UserError(f"data.path={args.shown} is empty")
    return CharTokenizer.from_counts(counts, args.unknown, args.min_frequency, args.max_vocab_size)
