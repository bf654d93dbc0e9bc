"""Text to ids: the numpy fast path of the tokenizer, and the whole preparation of a corpus with its
memory."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from craft.benchmarks import machine
from craft.benchmarks.harness import Comparison, Contender, Options, Sample, timed
from craft.benchmarks.processes import process_output
from craft.benchmarks.texts import ASCII, MIXED, make_text

PROTOCOL = """MB (10^6 bytes of UTF-8) per second. Encoding: a text in memory to ids in memory, by craft's
`encode_ids`, by the same tokenizer's Rust backend in chunks of 10,000 characters, and by a dictionary and a
list comprehension as nanoGPT's prepare.py does. Preparation: a text file to splits of ids on the disk, each
in its own process, imports not counted; memory is the peak of that process, growth is what the preparation
added to it."""

CHUNK = 10_000


def comparisons(options: Options) -> Iterator[Comparison]:
    size = 100_000 if options.quick else 8_000_000
    for name, alphabet in (("ASCII text", ASCII), ("multi-byte text", MIXED)):
        yield encoding(name, make_text(alphabet, size, options.seed))
    corpus_size = 200_000 if options.quick else int(options.size * 1e6)
    for name, alphabet in (
        [("multi-byte", MIXED)] if options.quick else [("ASCII", ASCII), ("multi-byte", MIXED)]
    ):
        with tempfile.TemporaryDirectory() as folder:
            yield preparation(name, make_text(alphabet, corpus_size, options.seed), Path(folder))


def encoding(name: str, text: str) -> Comparison:
    """The encoders on one text."""
    import numpy as np

    from craft.data.tokenization import CharTokenizer

    tokenizer = CharTokenizer.train([text])
    megabytes = len(text.encode("utf-8")) / 1e6
    rust = tokenizer.backend_tokenizer
    table = {character: i for i, character in enumerate(sorted(set(text)))}

    def fast() -> float:
        tokenizer.encode_ids(text)
        return megabytes

    def batches() -> float:
        chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
        encodings = rust.encode_batch_fast(chunks, add_special_tokens=False)
        np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings])
        return megabytes

    def comprehension() -> float:
        np.array([table[character] for character in text], dtype=np.uint16)
        return megabytes

    contenders = [
        Contender("tokenizers encode_batch_fast", timed(batches)),
        Contender("dict and list comprehension", timed(comprehension)),
        Contender("craft encode_ids", timed(fast)),
    ]
    settings = {"megabytes": megabytes, "characters": len(text), "alphabet": len(table), "chunk": CHUNK}
    return Comparison(f"encode, {name}", "MB", contenders, contenders[0].name, settings)


def preparation(name: str, text: str, folder: Path) -> Comparison:
    """The preparation of one file of text in processes of their own."""
    file = folder / "corpus.txt"
    file.write_text(text, encoding="utf-8", newline="")
    megabytes = file.stat().st_size / 1e6
    contenders = [
        Contender("read, set, dict, list comprehension", child("comprehension", file, megabytes)),
        Contender("craft load_corpus", child("craft", file, megabytes)),
        Contender("craft load_corpus, already in the cache", child("cached", file, megabytes)),
    ]
    settings = {"megabytes": megabytes, "characters": len(text)}
    return Comparison(f"prepare {megabytes:,.0f} MB, {name}", "MB", contenders, contenders[0].name, settings)


def child(way: str, file: Path, megabytes: float) -> Callable[[], Sample]:
    """A `run` that prepares `file` in another process, which reports its own seconds and memory."""

    def run() -> Sample:
        told = process_output(["-m", "craft.benchmarks.encode", way, str(file)])
        return Sample(**(json.loads(told.splitlines()[-1]) | {"amount": megabytes}))

    return run


def prepare_comprehension(file: Path, folder: Path) -> None:
    """What a preparation script does by hand: everything in memory, one Python object a character."""
    import numpy as np

    text = file.read_text(encoding="utf-8")
    table = {character: i for i, character in enumerate(sorted(set(text)))}
    cut = int(len(text) * 0.9)
    for split, part in (("train", text[:cut]), ("validation", text[cut:])):
        np.array([table[character] for character in part], dtype=np.uint16).tofile(folder / f"{split}.bin")


def prepare_craft(file: Path, folder: Path) -> None:
    from craft.data.arguments import DataArguments
    from craft.data.loaders import load_corpus

    load_corpus(DataArguments(source="files", path=str(file), cache_dir=str(folder)))


def main(way: str, file: str) -> None:
    """The child process: prepare once in a fresh folder and print seconds and memory as one line of JSON."""
    import craft.data.loaders  # noqa: F401  (imports are `startup`'s business)

    with tempfile.TemporaryDirectory() as cache:
        prepare = prepare_comprehension if way == "comprehension" else prepare_craft
        if way == "cached":
            prepare(Path(file), Path(cache))
        machine.reset_peak()
        before, start = machine.rss(), machine.now()
        prepare(Path(file), Path(cache))
        sample = Sample.between(start, machine.now(), 0)
        sample.rss_before, sample.rss_peak = before, machine.peak_rss()
        print(json.dumps(asdict(sample)))


if __name__ == "__main__":
    main(*sys.argv[1:])
