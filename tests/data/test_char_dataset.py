"""Windows, their order, and the loader that hands them to the processes of a run."""

from __future__ import annotations

import os
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from craft.data.base import release_pages
from craft.data.char_dataset import CharDataset, train_loader
from craft.utils.errors import UserError

SEED = st.integers(0, 2**31)


def make_batch(windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model of the next character makes of windows."""
    return {"input_ids": windows[:, :-1], "labels": windows[:, 1:]}


loader_of = partial(train_loader, make_batch=make_batch)


def test_windows_are_inputs_and_the_next_characters() -> None:
    dataset = CharDataset(np.arange(10, dtype=np.uint8), 3, 1, 0, "random")
    windows = dataset.windows(np.array([0, 6, 2]))
    assert windows.tolist() == [[0, 1, 2, 3], [6, 7, 8, 9], [2, 3, 4, 5]]
    assert windows.dtype == torch.int64


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
def test_windows_of_a_memory_map_are_those_of_the_array(dtype: Any, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 200, 1000).astype(dtype)
    np.save(tmp_path / "ids.npy", ids)
    mapped = CharDataset(np.load(tmp_path / "ids.npy", mmap_mode="r"), 7, 1, 0)
    starts = np.array([0, 992, 3])
    assert mapped.windows(starts).tolist() == [ids[s : s + 8].tolist() for s in starts]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_large_files_are_read_by_position(
    dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft.data.char_dataset.MAPPED_BYTES", 100)
    ids = np.random.default_rng(0).integers(0, 200, 1000).astype(dtype)
    np.save(tmp_path / "ids.npy", ids)
    whole = np.load(tmp_path / "ids.npy", mmap_mode="r")
    for part in (whole, whole[13:], whole[13:][7:900]):
        dataset = CharDataset(part, 7, 1, 0)
        assert dataset._file is not None
        starts = np.array([0, len(part) - 8, 3])
        assert dataset.windows(starts).tolist() == [part[s : s + 8].tolist() for s in starts]
    assert CharDataset(ids, 7, 1, 0)._file is None  # an array in memory
    assert CharDataset(np.load(tmp_path / "ids.npy", mmap_mode="r+"), 7, 1, 0)._file is None
    os.truncate(tmp_path / "ids.npy", 600)
    with refused("text-changed", tmp_path / "ids.npy"):
        CharDataset(whole, 7, 1, 0).windows(np.array([900]))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_released_pages_leave_the_memory_of_the_process(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(5_000_000, dtype=np.uint16))
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")[7:]
    before = resident()
    assert mapped.sum() == np.arange(5_000_000, dtype=np.uint16)[7:].sum()
    assert resident() - before > 8e6
    release_pages(mapped)
    assert resident() - before < 2e6
    assert mapped[:3].tolist() == [7, 8, 9]
    private = np.load(tmp_path / "ids.npy", mmap_mode="c")
    private[0] = 99
    release_pages(private)  # would lose what was written
    assert private[0] == 99


def resident() -> int:
    """Bytes of files that this process has mapped and touched."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


@settings(deadline=None)
@given(
    size=st.integers(1, 9),
    batch=st.integers(1, 7),
    extra=st.integers(0, 200),
    seed=SEED,
    epoch=st.integers(0, 9),
    lookahead=st.integers(0, 3),
)
def test_shuffled_windows_of_an_epoch_never_overlap_and_miss_less_than_a_batch(
    size: int, batch: int, extra: int, seed: int, epoch: int, lookahead: int
) -> None:
    n = size * (batch + 1) + extra + lookahead
    dataset = CharDataset(np.zeros(n, np.uint8), size, batch, seed, lookahead=lookahead)
    starts = np.sort(np.concatenate([dataset.starts(epoch, s) for s in range(dataset.steps_per_epoch)]))
    assert len(starts) == len(dataset) == dataset.steps_per_epoch * batch
    assert (np.diff(starts) >= size).all()
    assert len({int(s) % size for s in starts}) == 1
    assert starts[0] >= 0
    assert starts[-1] + size + lookahead <= n
    assert dataset.windows(starts).shape == (len(starts), size + lookahead)
    # Of the windows of that phase only the remainder of a batch, and one for the phase, are missing.
    possible = (n - lookahead - starts[0] % size) // size
    assert possible - len(starts) <= batch


@pytest.mark.parametrize("order", ["shuffled", "random", "streams"])
def test_phases_and_orders_differ_between_epochs_and_seeds(order: str) -> None:
    """Each by itself: where the windows begin, and in which order they come."""
    ids = np.zeros(64 * 1000, np.uint8)
    runs = [(CharDataset(ids, 64, 8, seed, order), epoch) for seed in range(10) for epoch in range(10)]
    starts = [dataset.starts(epoch, 5) for dataset, epoch in runs]
    assert len({int(first[0]) for first in starts[::10]}) > 8  # of the seeds, in one epoch
    assert len({int(first[0]) for first in starts[:10]}) > 8
    if order != "streams":
        assert len({tuple(windows // 64) for windows in starts}) == 100
    if order == "shuffled":
        assert len({int(windows[0] % 64) for windows in starts[::10]}) > 5
        assert len({int(runs[0][0].starts(epoch, 0)[0]) % 64 for epoch in range(200)}) > 55


@pytest.mark.parametrize("order", ["shuffled", "random", "streams"])
def test_starts_depend_on_nothing_but_seed_epoch_and_step(order: str) -> None:
    def dataset() -> CharDataset:
        return CharDataset(np.zeros(500_000, np.uint8), 16, 6, seed=3, order=order)

    one = dataset()
    places = [(0, 0), (0, 1), (2, 700), (1, 1), (0, 1), (0, 900)]
    assert [one.starts(*p).tolist() for p in places] == [dataset().starts(*p).tolist() for p in places]
    assert one.starts(0, 1).shape == (6,)
    assert one.starts(0, 1).dtype == np.int64


def test_random_offsets_reach_both_ends_and_repeat_freely() -> None:
    for lookahead, n in ((0, 19), (1, 20), (2, 21)):
        dataset = CharDataset(np.zeros(n, np.uint8), 8, 64, seed=0, order="random", lookahead=lookahead)
        starts = np.concatenate([dataset.starts(e, 0) for e in range(20)])
        assert set(starts.tolist()) == set(range(20 - 8))
    assert np.bincount(starts).min() > 60  # 107 expected
    dataset.windows(starts)


@settings(deadline=None)
@given(
    size=st.integers(1, 9),
    batch=st.integers(1, 5),
    extra=st.integers(0, 300),
    seed=SEED,
    epoch=st.integers(0, 5),
    lookahead=st.integers(0, 3),
)
def test_a_stream_goes_on_where_its_last_chunk_ended(
    size: int, batch: int, extra: int, seed: int, epoch: int, lookahead: int
) -> None:
    n = size * (batch + 1) + extra + lookahead
    dataset = CharDataset(np.arange(n, dtype=np.uint16), size, batch, seed, "streams", lookahead)
    chunks = [dataset.windows(dataset.starts(epoch, k)) for k in range(dataset.steps_per_epoch)]
    for before, after in pairwise(chunks):
        assert (before[:, size - 1] + 1 == after[:, 0]).all()  # behind the last input is the next first one
    inputs = torch.stack(chunks)[..., :size].flatten().tolist()
    assert len(inputs) == len(set(inputs)) == dataset.steps_per_epoch * batch * size
    assert n - len(inputs) <= (batch + 1) * size + lookahead  # what an epoch leaves out


@pytest.mark.parametrize("order", ["shuffled", "random", "streams"])
@given(batch=st.integers(1, 20), size=st.integers(1, 30), n=st.integers(2, 300))
def test_a_corpus_that_is_too_short_is_refused_with_the_largest_block_that_works(
    order: str, batch: int, size: int, n: int
) -> None:
    ids = np.zeros(n, np.uint8)
    try:
        CharDataset(ids, size, batch, 0, order)
    except UserError as error:
        best = int(str(error).rsplit("data.block_size at most ", 1)[1])
    else:
        return
    assert best < size
    if best:
        CharDataset(ids, best, batch, 0, order)
    with refused("text-short", f"data.block_size={best + 1}"):
        CharDataset(ids, best + 1, batch, 0, order)


def test_an_unknown_order_is_refused() -> None:
    with refused("setting-value", "'shufled'", "shuffled, random, streams"):
        CharDataset(np.zeros(100, np.uint8), 4, 2, 0, order="shufled")


def batches(
    dataset: CharDataset, rows: int, accumulation: int, rank: int, world: int, epoch: int
) -> list[dict]:
    loader = loader_of(dataset, rows, accumulation, rank, world)
    loader.set_epoch(epoch)
    assert len(loader) == dataset.steps_per_epoch * accumulation
    return list(loader)


@settings(deadline=None)
@given(
    rows=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    world=st.integers(1, 3),
    seed=SEED,
    epoch=st.integers(0, 3),
    order=st.sampled_from(["shuffled", "random", "streams"]),
)
def test_all_processes_and_micro_steps_together_are_the_global_batch(
    rows: int, accumulation: int, world: int, seed: int, epoch: int, order: str
) -> None:
    total = rows * accumulation * world
    dataset = CharDataset(np.arange(4 * 40 * total % 60_000, dtype=np.uint16), 4, total, seed, order)
    loaders = [batches(dataset, rows, accumulation, rank, world, epoch) for rank in range(world)]
    for step in range(dataset.steps_per_epoch):
        expected = dataset.windows(dataset.starts(epoch, step))
        parts = [loaders[r][step * accumulation + g] for g in range(accumulation) for r in range(world)]
        assert torch.equal(torch.cat([p["input_ids"] for p in parts]), expected[:, :-1])
        assert torch.equal(torch.cat([p["labels"] for p in parts]), expected[:, 1:])
        assert [p["step_in_epoch"] for p in parts] == [step] * len(parts)
        assert [p["micro_step"] for p in parts] == [g for g in range(accumulation) for _ in range(world)]


@settings(deadline=None)
@given(
    worlds=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
    accumulation=st.sampled_from([1, 2]),
    rows=st.integers(1, 2),
    extra=st.integers(0, 200),
    stop=st.integers(0, 50),
    seed=SEED,
    epoch=st.integers(0, 3),
    order=st.sampled_from(["shuffled", "streams"]),
)
def test_every_window_of_an_epoch_is_seen_once_whoever_starts_and_whoever_goes_on(
    worlds: tuple[int, int],
    accumulation: int,
    rows: int,
    extra: int,
    stop: int,
    seed: int,
    epoch: int,
    order: str,
) -> None:
    """Stopped after any step and gone on with by another number of processes."""
    total, size = 4 * 2 * rows, 3  # rows of the global batch, however they are shared out
    ids = np.arange((total + 1) * size + extra * 5, dtype=np.uint16)
    dataset = CharDataset(ids, size, total, seed, order)
    stop = min(stop, dataset.steps_per_epoch)
    targets: list[int] = []
    for world, first, last in ((worlds[0], 0, stop), (worlds[1], stop, dataset.steps_per_epoch)):
        per_device = total // accumulation // world
        for rank in range(world):
            loader = loader_of(dataset, per_device, accumulation, rank, world)
            loader.set_epoch(epoch)
            part = list(skip_first_batches(loader, first * accumulation))[: (last - first) * accumulation]
            targets += torch.cat([batch["labels"] for batch in part]).flatten().tolist() if part else []
    assert len(targets) == len(set(targets)) == len(dataset) * size  # nothing twice
    if order == "shuffled":  # and nothing missing but the ends and the remainder of a batch
        assert len(ids) - len(targets) <= (total + 1) * size
    else:
        assert sorted(targets) == list(range(min(targets), max(targets) + 1))


def same(one: dict, two: dict) -> bool:
    return torch.equal(one["input_ids"], two["input_ids"]) and one["step_in_epoch"] == two["step_in_epoch"]


@settings(deadline=None)
@given(skip=st.integers(0, 30), seed=SEED, epoch=st.integers(0, 3))
def test_a_skipped_loader_goes_on_exactly_there_and_follows_the_epoch(
    skip: int, seed: int, epoch: int
) -> None:
    dataset = CharDataset(np.arange(40 * 16, dtype=np.uint16), 5, 4, seed)
    loader = loader_of(dataset, 2, 2, 0, 1)
    skip = min(skip, len(loader))
    skipped = skip_first_batches(loader, skip)
    skipped.batch_sampler.batch_sampler.set_epoch(epoch)  # as HF Trainer reaches it
    whole = batches(dataset, 2, 2, 0, 1, epoch)
    rest = list(skipped)
    assert len(rest) == len(whole) - skip
    assert all(same(a, b) for a, b in zip(rest, whole[skip:]))
    loader.set_epoch(epoch + 1)
    following = batches(dataset, 2, 2, 0, 1, epoch + 1)
    assert all(same(a, b) for a, b in zip(loader, following))


def test_skipping_ten_million_batches_cuts_no_window() -> None:
    dataset = CharDataset(np.zeros(10_000_100, np.uint8), 1, 1, 0, order="random")
    cut = []
    dataset.windows = lambda starts: cut.append(starts) or torch.zeros(1, 2)  # type: ignore[assignment,method-assign]
    skipped = skip_first_batches(loader_of(dataset, 1, 1, 0, 1), 10_000_000)
    assert next(iter(skipped))["step_in_epoch"] == 10_000_000
    assert len(cut) == 1


def test_a_loader_whose_rows_are_not_the_global_batch_is_refused() -> None:
    dataset = CharDataset(np.zeros(1000, np.uint8), 4, 8, 0)
    with pytest.raises(ValueError, match="4, but the global batch is 8"):
        loader_of(dataset, 2, 2, 0, 1)


class Recorder(torch.nn.Module):
    """A model that writes down what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        self.seen.append(input_ids.tolist())
        return {"loss": self.weight * input_ids.float().mean()}


def test_hugging_face_trainer_resumes_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    dataset = CharDataset(np.arange(5 * 29, dtype=np.uint16), 5, 4, seed=1)
    assert dataset.steps_per_epoch == 7

    class OurTrainer(Trainer):
        def get_train_dataloader(self) -> Any:
            return loader_of(dataset, 2, 2, 0, 1)

    def train(resume: str | None) -> list[list[list[int]]]:
        args = TrainingArguments(
            str(tmp_path),
            max_steps=20,  # nearly three epochs
            save_steps=10,  # in the second
            gradient_accumulation_steps=2,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            learning_rate=0.1,
        )
        model = Recorder()
        OurTrainer(model, args, train_dataset=dataset).train(resume_from_checkpoint=resume)
        return model.seen

    whole = train(None)
    steps = [(step // 7, step % 7) for step in range(20)]
    expected = [
        dataset.windows(dataset.starts(*s))[rows, :-1].tolist() for s in steps for rows in ([0, 1], [2, 3])
    ]
    assert whole == expected
    assert train(str(tmp_path / "checkpoint-10")) == expected[20:]
