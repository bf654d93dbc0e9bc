"""Streams: every window once a pass, the same on every machine, and found again after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st

import craft.data.streaming as streaming
from craft.data.arguments import DataArguments
from craft.data.char_dataset import train_loader
from craft.data.loaders import load_corpus, train_dataset
from craft.data.sources import Piece
from craft.data.streaming import StreamDataset, TextStream
from craft.data.tokenization import ByteTokenizer, CharTokenizer
from craft.utils.common import UserError


class Letters:
    """Text in memory, in pieces of any size; `read` counts the passes over it."""

    documents = False

    def __init__(self, text: str, piece: int = 7) -> None:
        self.text, self.piece, self.read = text, piece, 0

    def pieces(self):  # type: ignore[no-untyped-def]
        self.read += 1
        for i in range(0, len(self.text), self.piece):
            yield Piece(self.text[i : i + self.piece], "letters", i)

    def signature(self) -> list[str]:
        return [self.text]


TEXT = "".join(chr(0x4E00 + i) for i in range(2000))  # every character another
TOKENIZER = CharTokenizer.train([TEXT])


def stream(n: int, skip: int = 0, piece: int = 7) -> TextStream:
    return TextStream(Letters(TEXT[:n], piece), TOKENIZER, skip)


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "WINDOWS_PER_BUFFER", 8)
    monkeypatch.setattr("craft.data.prepare.PIECE", 16)


@settings(deadline=None)
@given(n=st.integers(2, 400), size=st.integers(1, 9), skip=st.integers(0, 50), seed=st.integers(0, 99))
def test_a_pass_visits_every_window_once_buffer_by_buffer(n: int, size: int, skip: int, seed: int) -> None:
    count = (n - skip - 1) // size
    if count < 1:
        return
    dataset = StreamDataset(stream(n, skip), size, 1, seed)
    rows = [dataset.batch(0, step, np.arange(1))[0].tolist() for step in range(2 * count)]
    windows = [list(range(4 + skip + w * size, 4 + skip + w * size + size + 1)) for w in range(count)]
    for one_pass in (rows[:count], rows[count:]):
        for b in range(0, count, 8):
            assert sorted(one_pass[b : b + 8]) == windows[b : b + 8]


def test_buffers_are_shuffled_and_each_pass_differently() -> None:
    dataset = StreamDataset(stream(321), 5, 64, seed=1)
    first, second = (dataset.batch(0, step, np.arange(64))[:, 0].tolist() for step in (0, 1))
    assert first != sorted(first)
    assert first != second
    assert sorted(first) == sorted(second)
    assert dataset.batch(0, 0, np.arange(64))[:, 0].tolist() == first
    other = StreamDataset(stream(321, piece=50), 5, 64, seed=2).batch(0, 0, np.arange(64))[:, 0].tolist()
    assert other != first


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 3), accumulation=st.integers(1, 2), world=st.integers(1, 3), skip=st.integers(0, 12)
)
def test_processes_share_each_global_batch_and_a_skip_reads_forward(
    rows: int, accumulation: int, world: int, skip: int
) -> None:
    total = rows * accumulation * world
    whole = StreamDataset(stream(200, piece=11), 3, total, seed=5)
    expected = torch.stack([whole.batch(0, step, np.arange(total)) for step in range(16)])
    seen = []
    for rank in range(world):
        loader = train_loader(StreamDataset(stream(200), 3, total, seed=5), rows, accumulation, rank, world)
        batches = iter(skip_first_batches(loader, skip * accumulation))
        seen.append([next(batches) for _ in range(3 * accumulation)])
    for k in range(3):
        parts = [seen[r][k * accumulation + g] for g in range(accumulation) for r in range(world)]
        assert torch.equal(torch.cat([p["input_ids"] for p in parts]), expected[skip + k][:, :-1])
        assert torch.equal(torch.cat([p["labels"] for p in parts]), expected[skip + k][:, 1:])
        assert {p["step_in_epoch"] for p in parts} == {skip + k}


def test_a_stream_has_no_length() -> None:
    with pytest.raises(TypeError, match=r"set training.max_steps"):
        len(train_loader(StreamDataset(stream(100), 3, 2, seed=0), 2, 1, 0, 1))


def test_a_stream_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(UserError, match=r"ends before it fills a window of data.block_size=10"):
        StreamDataset(stream(10), 10, 1, seed=0).batch(0, 0, np.arange(1))


def corpus(path: Path, text: str, **fields: Any) -> Any:
    path.write_bytes(text.encode())
    return load_corpus(DataArguments(path=str(path), **{"streaming": True, "block_size": 4, **fields}))


@pytest.mark.parametrize("piece", [3, 64, 100_000])
def test_held_out_characters_are_never_trained_on(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft.data.prepare.PIECE", piece)
    found = corpus(tmp_path / "a.txt", TEXT, unknown="bytes", validation_size=100, test_size=50)
    decode = found.tokenizer.decode
    assert decode(found.validation) == TEXT[:100]
    assert decode(found.test) == TEXT[100:150]
    assert decode(np.concatenate(list(found.train.blocks()))) == TEXT[150:]
    assert isinstance(found.validation, np.ndarray)


@settings(deadline=None, max_examples=30)
@given(size=st.integers(10, 60))
def test_a_held_out_split_ends_between_characters(
    size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "aé世👩" * 30
    found = corpus(tmp_path_factory.getbasetemp() / "bytes.txt", text, tokenizer="byte", validation_size=size)
    held_out = bytes((found.validation - 4).astype(np.uint8)).decode()  # raises inside a character
    train = bytes((np.concatenate(list(found.train.blocks())) - 4).astype(np.uint8)).decode()
    assert held_out + train == text
    assert size <= len(found.validation) <= size + 3


def test_a_fraction_of_a_stream_is_a_fixed_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "VALIDATION_IDS", 30)
    found = corpus(tmp_path / "a.txt", TEXT, unknown="unk")
    assert len(found.validation) == 30
    assert found.test is None
    with pytest.raises(
        UserError, match=r"ends within the first 5000 characters, which data.validation_size=5000"
    ):
        corpus(tmp_path / "a.txt", TEXT, unknown="unk", validation_size=5000)
    with pytest.raises(UserError, match=r"too few for data.block_size=64; the largest that works is 29"):
        corpus(tmp_path / "a.txt", TEXT, unknown="unk", block_size=64)


def test_the_alphabet_of_a_stream_is_that_of_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "ALPHABET_CHARACTERS", 20)
    found = corpus(tmp_path / "a.txt", TEXT, unknown="unk", validation_size=10)
    assert found.tokenizer.alphabet == list(TEXT[:20])
    ids = np.concatenate(list(found.train.blocks()))
    assert (ids[10:] == 3).all()
    with pytest.raises(UserError, match=r"data.unknown=strict can't hold; use data.tokenizer=byte"):
        corpus(tmp_path / "a.txt", TEXT)


def test_nothing_is_written_and_the_loader_runs(tmp_path: Path, cache: Path) -> None:
    found = corpus(tmp_path / "a.txt", TEXT, tokenizer="byte", validation_size=99)
    args = DataArguments(path="a.txt", streaming=True, tokenizer="byte", block_size=4)
    dataset = train_dataset(found, args, 2, seed=0)
    assert next(iter(train_loader(dataset, 2, 1, 0, 1)))["input_ids"].shape == (2, 4)
    assert not cache.exists()
    with pytest.raises(UserError, match="carried state needs many places of it at once"):
        train_dataset(found, args, 2, seed=0, order="streams")


def test_the_builtin_corpus_streams_too() -> None:
    found = load_corpus(
        DataArguments(
            source="builtin", path="python_docs", streaming=True, tokenizer="byte", validation_size=1000
        )
    )
    assert isinstance(found.tokenizer, ByteTokenizer)
    assert len(found.validation) == 1000
