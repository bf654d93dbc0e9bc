"""A source to ids on the disk, in two passes of constant memory: count the characters, then encode them.

Both passes are remembered: the scan by the source's signature, the ids by (content, tokenizer, code version).
A second run of an untouched corpus reads nothing but a few kilobytes of JSON before it maps the ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from craft.data.cache import Cache
from craft.data.processors import EOS
from craft.data.reading import PIECE
from craft.data.sources import Piece, Source
from craft.data.tokenization import CharTokenizer
from craft.utils.errors import UserError

VERSION = 3  # raise it when the meaning of cached files changes
ARRAY = "ids.bin"


@dataclass(frozen=True)
class Scan:
    """What the first pass learns.

    Args:
        sha256: of the text and the boundaries of its documents.
        counts: character -> occurrences.
    """

    sha256: str
    counts: dict[str, int]


def scan(source: Source, cache: Cache) -> Scan:
    """The first pass over a source, or what is remembered of it."""
    signature = source.signature()
    content, boundaries = hashlib.sha256(), hashlib.sha256()

    def texts() -> Iterator[str]:
        for pieces in _batches(source.pieces()):
            text = "".join([piece.text for piece in pieces])
            content.update(text.encode())
            if source.documents:
                boundaries.update(np.array([len(piece.text) for piece in pieces], np.int64).tobytes())
            yield text

    def build(folder: Path) -> None:
        counts = count_characters(texts())
        sha256 = hashlib.sha256(content.digest() + boundaries.digest()).hexdigest()
        _check_unchanged(source, signature)
        (folder / "scan.json").write_text(json.dumps({"sha256": sha256, "counts": counts}), encoding="utf-8")

    path = cache.entry(f"counts-{_digest([VERSION, type(source).__name__, signature])}", build) / "scan.json"
    return Scan(**json.loads(path.read_text(encoding="utf-8")))


def content_key(found: Scan, tokenizer: CharTokenizer) -> str:
    """What decides the ids of a text: its content and the tokenizer."""
    return f"ids-{_digest([VERSION, found.sha256, tokenizer.unknown, ''.join(tokenizer.alphabet)])}"


def ids(source: Source, found: Scan, tokenizer: CharTokenizer, cache: Cache) -> np.ndarray:
    """The ids of a source: a read-only memory-mapped array in the smallest unsigned type.

    Raises:
        UserError: for characters that the tokenizer refuses, or if the source changes meanwhile.
    """
    dtype = tokenizer.processor.dtype

    def build(folder: Path) -> None:
        signature = source.signature()
        # Written, not mapped: the dirty pages of a map would count as memory of this process.
        with (folder / ARRAY).open("wb") as file:
            for block in encoded(source.pieces(), source.documents, tokenizer):
                file.write(block.astype(dtype, copy=False).data)
        _check_unchanged(source, signature)

    return np.memmap(cache.entry(f"{content_key(found, tokenizer)}-array", build) / ARRAY, dtype, mode="r")


def encoded(pieces: Iterator[Piece], documents: bool, tokenizer: CharTokenizer) -> Iterator[np.ndarray]:
    """The ids of pieces of a source in blocks of about a megabyte of text; `<eos>` follows each document."""
    end = np.array([EOS], tokenizer.processor.dtype)
    for batch in _batches(pieces):
        blocks: list[np.ndarray] = []
        for text, where, offset in batch:
            blocks.append(tokenizer.encode_ids(text, where, offset))
            if documents:
                blocks.append(end)
        yield np.concatenate(blocks) if len(blocks) > 1 else blocks[0]


def count_characters(texts: Iterator[str]) -> dict[str, int]:
    """Character -> occurrences, of texts of any number, in order of code point."""
    totals = np.zeros(0x110000, np.int64)
    for text in texts:
        ascii = text.isascii()
        codes = np.frombuffer(
            text.encode("ascii" if ascii else "utf-32-le"), np.uint8 if ascii else np.uint32
        )
        found = np.bincount(codes)
        totals[: len(found)] += found
    return {chr(code): int(totals[code]) for code in np.flatnonzero(totals)}


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces in lists of about a megabyte: documents are often too short for numpy."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text) + 1
        if size >= PIECE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check_unchanged(source: Source, before: list) -> None:
    if source.signature() != before:
        raise UserError("the text changed while it was being read; run again", code="text-changed")


def _digest(value: list) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
