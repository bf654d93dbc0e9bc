"""Streams: each window once a pass, the same on every machine, and found again after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

import craft.data.streaming as streaming
from craft.data.arguments import DataArguments
from craft.data.char_dataset import train_loader
from craft.data.loaders import load_corpus, train_dataset
from craft.data.order import balanced_shards
from craft.data.sources import Piece, Shard
from craft.data.streaming import StreamDataset, TextStream
from craft.data.tokenization import ByteTokenizer, CharTokenizer


class Letters:
    """Text in memory, in pieces and shards of any size; `read` notes the shards that were read."""

    documents = False

    def __init__(self, text: str, piece: int = 7, borders: tuple[int, ...] = ()) -> None:
        self.text, self.piece, self.read = text, piece, []  # type: ignore[var-annotated]
        self.borders = [0, *borders, len(text)]

    def pieces(self) -> Iterator[Piece]:
        return self.part(0, len(self.text))

    def part(self, start: int, end: int) -> Iterator[Piece]:
        self.read.append((start, end))
        for i in range(start, end, self.piece):
            yield Piece(self.text[i : min(i + self.piece, end)], "letters", i)

    def shards(self, size: int) -> list[Shard]:
        return [Shard(b - a, partial(self.part, a, b)) for a, b in pairwise(self.borders)]

    def signature(self) -> list[str]:
        return [self.text]


TEXT = "".join(chr(0x4E00 + i) for i in range(2000))  # every character another
TOKENIZER = CharTokenizer.train([TEXT])


def make_batch(windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model of the next character makes of windows."""
    return {"input_ids": windows[:, :-1], "labels": windows[:, 1:]}


loader_of = partial(train_loader, make_batch=make_batch)


def stream(n: int, skip: int = 0, piece: int = 7, shards: int = 1) -> TextStream:
    borders = tuple(n * i // shards for i in range(1, shards))
    return TextStream.of(Letters(TEXT[:n], piece, borders), TOKENIZER, 1).without_first(skip)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "IDS_PER_BLOCK", 40)
    monkeypatch.setattr("craft.data.prepare.PIECE", 16)


def expected_pass(dataset: StreamDataset, lane: int, number: int) -> list[list[int]]:
    """The windows of a lane in a pass, unshuffled, cut from its shards laid end to end."""
    size, ahead, shards = dataset.block_size, dataset.lookahead, dataset.shards_of(lane, number)
    ids = [i for shard in shards for block in dataset.stream.shard(shard) for i in block.tolist()]
    return [ids[w * size : w * size + size + ahead] for w in range(max(0, len(ids) - ahead) // size)]


@settings(deadline=None)
@given(
    n=st.integers(2, 400),
    size=st.integers(1, 9),
    skip=st.integers(0, 50),
    seed=st.integers(0, 99),
    shards=st.integers(1, 12),
    lanes=st.integers(1, 5),
    batch=st.integers(1, 7),
    lookahead=st.integers(0, 3),
)
def test_each_pass_of_a_lane_visits_every_window_of_its_shards_once(
    n: int, size: int, skip: int, seed: int, shards: int, lanes: int, batch: int, lookahead: int
) -> None:
    found = stream(n, skip, shards=shards)
    if not found.shards:
        return
    dataset = StreamDataset(found, size, batch, seed, lanes, lookahead)
    rows = np.arange(batch)
    lane_of = dataset.lanes_of(rows)
    assert set(lane_of.tolist()) == set(range(dataset.n_lanes))
    for number in range(3):  # every shard is read once a pass
        parts = [dataset.shards_of(lane, number) for lane in range(dataset.n_lanes)]
        assert sorted(chain(*parts)) == list(range(len(found.shards)))
        assert all(parts)
    expected = {
        lane: [expected_pass(dataset, lane, number) for number in range(2)] for lane in range(dataset.n_lanes)
    }
    if not all(all(passes) for passes in expected.values()):
        return  # a lane without a window; see below
    longest = max(sum(map(len, passes)) for passes in expected.values())
    steps = torch.stack([dataset.batch(0, step, rows) for step in range(longest)])
    block = max(1, 40 // size)
    for lane, passes in expected.items():
        seen = steps[:, lane_of == lane].flatten(0, 1).tolist()
        for windows in passes:
            for b in range(0, len(windows), block):
                part = windows[b : b + block]
                assert sorted(seen[: len(part)]) == sorted(part)
                seen = seen[len(part) :]


def test_blocks_are_shuffled_and_each_pass_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "IDS_PER_BLOCK", 320)
    rows = np.arange(64)
    dataset = StreamDataset(stream(321), 5, 64, seed=1)
    first, second = (dataset.batch(0, step, rows)[:, 0].tolist() for step in (0, 1))
    assert first != sorted(first)
    assert first != second
    assert sorted(first) == sorted(second)
    assert dataset.batch(0, 0, rows)[:, 0].tolist() == first
    other = StreamDataset(stream(321, piece=50), 5, 64, seed=2).batch(0, 0, rows)[:, 0].tolist()
    assert other != first


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 3),
    accumulation=st.integers(1, 2),
    world=st.integers(1, 3),
    skip=st.integers(0, 60),
    shards=st.integers(1, 12),
    lanes=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_processes_share_each_global_batch_and_resume_anywhere(
    rows: int, accumulation: int, world: int, skip: int, shards: int, lanes: int, seed: int
) -> None:
    total = rows * accumulation * world

    def dataset(piece: int = 7) -> StreamDataset:
        return StreamDataset(stream(200, piece=piece, shards=shards), 3, total, seed, lanes)

    whole = dataset(piece=11)
    expected = torch.stack([whole.batch(0, step, np.arange(total)) for step in range(skip + 3)])
    seen, states = [], []
    for rank in range(world):
        loader = loader_of(dataset(), rows, accumulation, rank, world)
        batches = iter(skip_first_batches(loader, skip * accumulation))  # many passes over 200 characters
        seen.append([next(batches) for _ in range(3 * accumulation)])
        states.append(loader.dataset.dataset.state_dict())
    for k in range(3):
        parts = [seen[r][k * accumulation + g] for g in range(accumulation) for r in range(world)]
        assert torch.equal(torch.cat([p["input_ids"] for p in parts]), expected[skip + k][:, :-1])
        assert torch.equal(torch.cat([p["labels"] for p in parts]), expected[skip + k][:, 1:])
        assert {p["step_in_epoch"] for p in parts} == {skip + k}
    # What the processes found out together serves any number of processes.
    alone = dataset()
    alone.load_rank_states(states, 0)
    assert torch.equal(alone.batch(0, skip + 2, np.arange(total)), expected[skip + 2])


def test_a_process_reads_its_lanes_only_and_a_resumed_one_little_of_them() -> None:
    source = Letters(TEXT, 7, tuple(range(20, 2000, 20)))  # 100 shards of 20 characters
    found = TextStream.of(source, TOKENIZER, 1)
    for world, rank in ((4, 1), (2, 1)):
        dataset = StreamDataset(found, 4, 16, seed=3, lanes=8)
        rows = np.arange(16 // world) + rank * 16 // world
        mine = {
            shard for lane in set(dataset.lanes_of(rows).tolist()) for shard in dataset.shards_of(lane, 0)
        }
        assert 0.9 * 100 / world <= len(mine) <= 1.1 * 100 / world
        source.read.clear()
        for step in range(20):
            dataset.batch(0, step, rows)
        assert {start // 20 for start, _ in source.read} <= mine
    last = dataset.batch(0, 20, rows)
    source.read.clear()
    again = StreamDataset(found, 4, 16, seed=3, lanes=8)
    again.load_rank_states([dataset.state_dict()], 0)
    assert torch.equal(again.batch(0, 20, rows), last)
    assert len(source.read) <= 4 * 3  # a block of 40 characters and the next shard, in each of four lanes
    source.read.clear()
    forgetful = StreamDataset(found, 4, 16, seed=3, lanes=8)
    assert torch.equal(forgetful.batch(0, 20, rows), last)
    assert len(source.read) > 4 * 3  # by reading


def test_lanes_of_unequal_shards_end_a_pass_at_about_the_same_time() -> None:
    sizes = [1, 1, 1, 50, 1, 1, 1, 1, 10, 10, 10, 10, 10]
    parts = balanced_shards(sizes, 2, 5, 0)
    loads = [sum(sizes[shard] for shard in part) for part in parts]
    assert abs(loads[0] - loads[1]) <= 50
    assert sum(loads) == sum(sizes)
    assert balanced_shards(sizes, 2, 5, 0) == parts
    assert balanced_shards(sizes, 2, 5, 1) != parts
    assert all(balanced_shards([0] * 5, 5, 1))


def test_a_lane_whose_shards_are_too_short_waits_for_a_better_pass() -> None:
    found = TextStream.of(Letters(TEXT[:60], 7, (50, 52)), TOKENIZER, 1)  # 50, 2 and 8 characters
    rows = StreamDataset(found, 9, 2, seed=0, lanes=2).batch(0, 3, np.arange(2))
    assert (rows[:, 1:] - rows[:, :-1] >= 1).all()
    found = TextStream.of(Letters(TEXT[:20], 7, (5, 10, 15)), TOKENIZER, 1)
    with refused("text-short", "data.block_size=9"):
        StreamDataset(found, 9, 4, seed=0, lanes=4).batch(0, 0, np.arange(4))


def test_a_stream_has_no_length() -> None:
    with pytest.raises(TypeError, match=r"set training.max_steps"):
        len(loader_of(StreamDataset(stream(100), 3, 2, seed=0), 2, 1, 0, 1))


def test_a_stream_shorter_than_a_window_is_refused() -> None:
    with refused("text-short", "data.block_size=10"):
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


def test_a_count_beyond_the_end_and_a_split_shorter_than_a_window_are_refused(tmp_path: Path) -> None:
    with refused("text-short", tmp_path / "a.txt", "data.validation_size=5000"):
        corpus(tmp_path / "a.txt", TEXT, unknown="unk", validation_size=5000)
    fields: Any = {"unknown": "unk", "block_size": 64, "validation_size": 30, "streaming": True}
    found = corpus(tmp_path / "a.txt", TEXT, **fields)
    with refused("text-short", "data.block_size=64", "data.validation_size", 29):
        train_dataset(found, DataArguments(path="a.txt", **fields), 2, seed=0)


@pytest.mark.parametrize("length", [200, 1999, 2000])
def test_a_fraction_of_a_stream_is_one_of_its_beginning(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft.data.stream_splits.BEGINNING", 1500)
    sizes = {"validation_size": 0.25, "test_size": 0.1}
    found = corpus(tmp_path / "a.txt", "abcdefghij" * (length // 10), tokenizer="byte", **sizes)
    held_out = [len(found.validation), len(found.test)]
    beginning = min(length // 10 * 10, 1500)
    assert held_out == [int(0.25 * beginning), int(0.1 * beginning)]
    assert sum(map(len, found.train.blocks())) == length // 10 * 10 - sum(held_out)


def test_the_alphabet_of_a_stream_is_that_of_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft.data.stream_splits.BEGINNING", 20)
    found = corpus(tmp_path / "a.txt", TEXT, unknown="unk", validation_size=10)
    assert found.tokenizer.alphabet == list(TEXT[:20])
    ids = np.concatenate(list(found.train.blocks()))
    assert (ids[10:] == 3).all()
    with refused("setting-conflict", "data.unknown=strict", "data.tokenizer=byte"):
        corpus(tmp_path / "a.txt", TEXT)


def test_nothing_is_written_and_the_loader_runs(tmp_path: Path, cache: Path) -> None:
    found = corpus(tmp_path / "a.txt", TEXT, tokenizer="byte", validation_size=99)
    args = DataArguments(path="a.txt", streaming=True, tokenizer="byte", block_size=4)
    dataset = train_dataset(found, args, 2, seed=0)
    assert next(iter(loader_of(dataset, 2, 1, 0, 1)))["input_ids"].shape == (2, 4)
    assert not cache.exists()
    with refused("setting-conflict", "data.streaming", "training.carry_state=false"):
        train_dataset(found, args, 2, seed=0, order="streams")


def test_separators_and_files_end_as_in_prepared_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SHARD_BYTES", 64)
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text(f"{i} äöü" * (i * 10))
    for separator in ("", "é--\n"):
        fields: Any = {"path": str(tmp_path), "block_size": 1, "tokenizer": "byte", "separator": separator}
        fields["validation_size"] = 0
        streamed = load_corpus(DataArguments(**fields, streaming=True)).train
        assert isinstance(streamed, TextStream)
        assert len(streamed.shards) > 9
        assert (
            np.concatenate(list(streamed.blocks())).tolist()
            == load_corpus(DataArguments(**fields)).train.tolist()
        )


def test_the_builtin_corpus_streams_too() -> None:
    found = load_corpus(
        DataArguments(
            source="builtin", path="python_docs", streaming=True, tokenizer="byte", validation_size=1000
        )
    )
    assert isinstance(found.tokenizer, ByteTokenizer)
    assert len(found.validation) == 1000
