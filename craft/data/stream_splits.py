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

BEGINNING = 10_000_000
"""How many characters of a stream decide its alphabet, and what a fraction means: its length isn't known."""


def open_stream(
    args: DataArguments, source: Source, own: dict[str, Source], tokenizer: CharTokenizer | None
) -> tuple[CharTokenizer, TextStream, dict[str, np.ndarray]]:
    """(tokenizer, train, held-out splits) of a streamed corpus.

    Args:
        own: the dataset's own `validation` and `test` splits; the others are taken from the stream's start.

    Raises:
        UserError: if the alphabet can't be known in advance, or the stream is too short.
    """
    tokenizer = tokenizer or _tokenizer(args, source)
    stream = TextStream.of(source, tokenizer, args.block_size)
    held_out = {
        split: np.concatenate([np.empty(0, np.uint8), *encoded(found.pieces(), found.documents, tokenizer)])
        for split, found in own.items()
    }
    sizes = {"validation": args.validation_size, "test": args.test_size}
    sizes = {split: size for split, size in sizes.items() if size and split not in own}
    beginning = len(_first(stream, BEGINNING)) if any(size < 1 for size in sizes.values()) else 0
    for split, size in sizes.items():
        wanted = int(size if size >= 1 else size * beginning)
        ids = _first(stream, wanted + 3)
        held_out[split] = ids[: tokenizer.processor.boundary(ids, wanted)]
        if len(held_out[split]) < wanted:
            raise UserError(
                f"{args.shown} ends within the characters that data.{split}_size={size} holds out of a "
                "stream; give a smaller count, or set data.streaming=false",
                code="text-short",
            )
        stream = stream.without_first(len(held_out[split]))
    return tokenizer, stream, held_out


def _first(stream: TextStream, most: int) -> np.ndarray:
    """The first ids of a stream."""
    blocks: list[np.ndarray] = [np.empty(0, stream.tokenizer.processor.dtype)]
    size = 0
    for block in stream.blocks():
        blocks.append(block)
        size += len(block)
        if size >= most:
            break
    return np.concatenate(blocks)[:most]


def _tokenizer(args: DataArguments, source: Source) -> CharTokenizer:
    if args.tokenizer == "byte":
        return ByteTokenizer.create()
    if args.unknown == "strict":
        raise UserError(
            "the alphabet of a stream isn't known in advance, so data.unknown=strict can't hold; "
            "use data.tokenizer=byte, or data.unknown=bytes (lossless), or data.unknown=unk",
            code="setting-conflict",
        )

    def beginning() -> Iterator[str]:
        left = BEGINNING
        for piece in source.pieces():
            yield piece.text[:left]
            if (left := left - len(piece.text)) <= 0:
                return

    counts = count_characters(beginning())
    if not counts:
        raise UserError(f"data.path={args.shown} is empty", code="text-missing")
    return CharTokenizer.from_counts(counts, args.unknown, args.min_frequency, args.max_vocab_size)
