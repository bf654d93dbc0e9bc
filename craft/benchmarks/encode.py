"""Text to ids, in MB (10^6 bytes of UTF-8) per second.

A text in memory to ids in memory, by the tokenizer's Rust backend in chunks of 10,000 characters (the
baseline), by a dictionary and a list comprehension as nanoGPT's prepare.py does, and by craft's `encode_ids`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from craft.benchmarks.harness import Comparison, Options, timed
from craft.benchmarks.texts import ASCII, MIXED, make_text
from craft.data.tokenization import CharTokenizer

CHUNK = 10_000


def comparisons(options: Options) -> Iterator[Comparison]:
    size = 100_000 if options.quick else 8_000_000
    for name, alphabet in (("ASCII text", ASCII), ("multi-byte text", MIXED)):
        yield encoding(name, make_text(alphabet, size))


def encoding(name: str, text: str) -> Comparison:
    """The encoders on one text."""
    tokenizer = CharTokenizer.train([text])
    table = {character: i for i, character in enumerate(sorted(set(text)))}
    megabytes = len(text.encode("utf-8")) / 1e6

    def backend() -> None:
        chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(chunks, add_special_tokens=False)
        np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings])

    contenders = {
        "tokenizers encode_batch_fast": timed(backend),
        "dict and list comprehension": timed(
            lambda: np.array([table[character] for character in text], dtype=np.uint16)
        ),
        "craft encode_ids": timed(lambda: tokenizer.encode_ids(text)),
    }
    settings = {"alphabet": len(table), "chunk": CHUNK}
    return Comparison(f"encode, {name}", megabytes, "MB", contenders, settings)
