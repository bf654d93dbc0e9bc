"""Text to ids, in MB (10^6 bytes of UTF-8) per second.

Encoding: a text in memory to ids in memory, by the tokenizer's Rust backend in chunks of 10,000 characters
(the baseline), by a dictionary and a list comprehension as nanoGPT's prepare.py does, and by craft's
`encode_ids`. Preparation: a text file to splits of ids on the disk, by a script like nanoGPT's (the
baseline) and by `load_corpus`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from craft.benchmarks.harness import Comparison, Options, Sample, timed
from craft.benchmarks.texts import ASCII, MIXED, make_text
from craft.data.arguments import DataArguments
from craft.data.loaders import load_corpus
from craft.data.tokenization import CharTokenizer

CHUNK = 10_000


def comparisons(options: Options) -> Iterator[Comparison]:
    size, corpus = (100_000, 200_000) if options.quick else (8_000_000, options.size * 10**6)
    for name, alphabet in (("ASCII text", ASCII), ("multi-byte text", MIXED)):
        yield encoding(name, make_text(alphabet, size))
        yield preparation(name, make_text(alphabet, corpus))


def encoding(name: str, text: str) -> Comparison:
    """The encoders on one text."""
    tokenizer = CharTokenizer.train([text])
    megabytes = len(text.encode("utf-8")) / 1e6

    def backend() -> None:
        chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(chunks, add_special_tokens=False)
        np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings])

    contenders = {
        "tokenizers encode_batch_fast": timed(backend, megabytes),
        "dict and list comprehension": timed(lambda: encode_by_dictionary(text, text), megabytes),
        "craft encode_ids": timed(lambda: tokenizer.encode_ids(text), megabytes),
    }
    settings = {"megabytes": megabytes, "alphabet": len(set(text)), "chunk": CHUNK}
    return Comparison(f"encode, {name}", "MB", contenders, settings)


def encode_by_dictionary(text: str, alphabet: str) -> np.ndarray:
    table = {character: i for i, character in enumerate(sorted(set(alphabet)))}
    return np.array([table[character] for character in text], dtype=np.uint16)


def preparation(name: str, text: str) -> Comparison:
    """A file of the text prepared in a new folder each time."""
    megabytes = len(text.encode("utf-8")) / 1e6

    def prepared(prepare: Callable[[Path, Path], object]) -> Callable[[], Sample]:
        def run() -> Sample:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "corpus.txt"
                file.write_text(text, encoding="utf-8", newline="")
                return timed(lambda: prepare(file, Path(folder)), megabytes)()

        return run

    contenders = {
        "read, set, dict, list comprehension": prepared(by_script),
        "craft load_corpus": prepared(by_craft),
    }
    return Comparison(f"prepare {megabytes:,.0f} MB, {name}", "MB", contenders, {"characters": len(text)})


def by_script(file: Path, folder: Path) -> None:
    """What a preparation script does by hand: everything in memory, one Python object a character."""
    text = file.read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    for split, part in (("train", text[:cut]), ("validation", text[cut:])):
        encode_by_dictionary(part, text).tofile(folder / f"{split}.bin")


def by_craft(file: Path, folder: Path) -> None:
    load_corpus(DataArguments(source="files", path=str(file), cache_dir=str(folder)))
