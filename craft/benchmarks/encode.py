"""Text to ids, in MB (10^6 bytes of UTF-8) per second.

Encoding: a text in memory to ids in memory, by the tokenizer's Rust backend in chunks of 10,000 characters
(the baseline), by a dictionary and a list comprehension as nanoGPT's prepare.py does, and by craft's
`encode_ids`. Preparation: a text file to splits of ids on the disk, by a script like nanoGPT's (the
baseline) and by `load_corpus`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from craft.benchmarks.harness import Comparison, Options, timed
from craft.benchmarks.texts import ASCII, MIXED, make_text
from craft.data.arguments import DataArguments
from craft.data.loaders import load_corpus
from craft.data.tokenization import CharTokenizer

CHUNK = 10_000


def comparisons(options: Options) -> Iterator[Comparison]:
    size, corpus = (100_000, 200_000) if options.quick else (8_000_000, options.size * 10**6)
    for name, alphabet in (("ASCII text", ASCII), ("multi-byte text", MIXED)):
        yield encoding(name, make_text(alphabet, size))
        with tempfile.TemporaryDirectory() as folder:
            yield preparation(name, make_text(alphabet, corpus), Path(folder))


def encoding(name: str, text: str) -> Comparison:
    """The encoders on one text."""
    tokenizer = CharTokenizer.train([text])
    table, megabytes = ids_by_character(text), len(text.encode("utf-8")) / 1e6

    def backend() -> None:
        chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(chunks, add_special_tokens=False)
        np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings])

    contenders = {
        "tokenizers encode_batch_fast": timed(backend),
        "dict and list comprehension": timed(lambda: by_comprehension(text, table)),
        "craft encode_ids": timed(lambda: tokenizer.encode_ids(text)),
    }
    settings = {"alphabet": len(table), "chunk": CHUNK}
    return Comparison(f"encode, {name}", megabytes, "MB", contenders, settings)


def ids_by_character(text: str) -> dict[str, int]:
    return {character: i for i, character in enumerate(sorted(set(text)))}


def by_comprehension(text: str, table: dict[str, int]) -> np.ndarray:
    return np.array([table[character] for character in text], dtype=np.uint16)


def preparation(name: str, text: str, folder: Path) -> Comparison:
    """A file of the text prepared in a new folder each time."""
    file = folder / "corpus.txt"
    file.write_text(text, encoding="utf-8", newline="")
    megabytes = file.stat().st_size / 1e6
    contenders = {
        "read, set, dict, list comprehension": timed(lambda: by_script(file, mkdtemp(dir=folder))),
        "craft load_corpus": timed(lambda: by_craft(file, mkdtemp(dir=folder))),
    }
    return Comparison(f"prepare {megabytes:,.0f} MB, {name}", megabytes, "MB", contenders)


def by_script(file: Path, folder: str) -> None:
    """What a preparation script does by hand: everything in memory, one Python object a character."""
    text = file.read_text(encoding="utf-8")
    table, cut = ids_by_character(text), int(len(text) * 0.9)
    for split, part in (("train", text[:cut]), ("validation", text[cut:])):
        by_comprehension(part, table).tofile(f"{folder}/{split}.bin")


def by_craft(file: Path, folder: str) -> None:
    load_corpus(DataArguments(source="files", path=str(file), cache_dir=folder))
