"""Batches of windows out of a corpus on the disk: how fast data can reach the model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from craft.benchmarks.harness import Comparison, Contender, Options, timed
from craft.benchmarks.networks import VOCAB
from craft.benchmarks.texts import make_ids

PROTOCOL = """Windows of T+1 ids per second out of a memory-mapped file of ids, in shuffled order, delivered
as int64 tensors [B, T+1] (or inputs and labels [B, T]). Baseline: a map-style dataset with one row a call
under torch's DataLoader with its defaults and shuffle=True, in the same process. By size: the last of these
over files of 1 MB to 5 GB of 8-bit ids (holes, which take no disk), read once before so that they lie in the
system's cache, the smallest as the baseline; beyond 256 MB ids are read by position instead of mapped."""

MEGABYTES = (1, 100, 1000, 5000)


def comparisons(options: Options) -> Iterator[Comparison]:
    block_size, batch, batches = (16, 8, 20) if options.quick else (256, 64, 400)
    count = (batches + 2) * batch * (block_size + 1) * (2 if options.quick else 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ids.bin"
        make_ids(count, VOCAB, options.seed).astype(np.uint16).tofile(path)
        ids = np.memmap(path, dtype=np.uint16, mode="r")
        yield windows(ids, block_size, batch, batches, options.seed)
        del ids  # Windows can't delete a mapped file
        yield by_size(Path(folder), (1, 2) if options.quick else MEGABYTES, block_size, batch, options.seed)


def windows(ids: np.ndarray, block_size: int, batch: int, batches: int, seed: int) -> Comparison:
    """The ways to draw `batches` batches of windows."""
    import torch

    from craft.data.char_dataset import CharDataset, train_loader

    dataset = CharDataset(ids, block_size, batch, seed)
    loader = train_loader(dataset, batch, 1, 0, 1, make_batch=lambda windows: {"windows": windows})
    table: Any = RowDataset(ids, block_size)
    rows = torch.utils.data.DataLoader(table, batch_size=batch, shuffle=True, drop_last=True)
    random = np.random.default_rng(seed)

    def loop(source: Callable[[], Any]) -> Callable[[], float]:
        def work() -> float:
            for _ in islice(source(), batches):
                pass
            return batches * batch

        return work

    def cut() -> Iterator[Any]:
        for step in range(dataset.steps_per_epoch):
            yield dataset.windows(dataset.starts(0, step))

    def stack() -> Iterator[Any]:
        while True:
            starts = random.integers(0, len(ids) - block_size - 1, batch)
            crops = [ids[i : i + block_size + 1].astype(np.int64) for i in starts]
            inputs = torch.stack([torch.from_numpy(crop[:-1]) for crop in crops])
            yield inputs, torch.stack([torch.from_numpy(crop[1:]) for crop in crops])

    contenders = [
        Contender("DataLoader over rows", timed(loop(lambda: iter(rows)))),
        Contender("torch.stack of random crops, as nanoGPT", timed(loop(stack))),
        Contender("craft train_loader", timed(loop(lambda: iter(loader)))),
        Contender("craft CharDataset.windows", timed(loop(cut))),
    ]
    settings = {"ids": len(ids), "dtype": str(ids.dtype), "batch": batch, "batches": batches}
    return Comparison(f"windows of {block_size + 1} ids", "windows", contenders, contenders[0].name, settings)


def by_size(folder: Path, megabytes: tuple[int, ...], block_size: int, batch: int, seed: int) -> Comparison:
    """The same windows out of corpora of several sizes."""
    from craft.data.char_dataset import CharDataset

    batches = 500

    def contender(size: int) -> Contender:
        path = folder / f"{size}.bin"
        with path.open("wb") as file:
            file.truncate(size * 10**6)
        with path.open("rb") as written:
            while written.read(1 << 24):
                pass
        dataset = CharDataset(np.memmap(path, np.uint8, "r"), block_size, batch, seed)
        steps = 0

        def work() -> float:
            nonlocal steps
            for step in range(steps, steps + batches):  # other windows in each round
                dataset.windows(dataset.starts(*divmod(step, dataset.steps_per_epoch)))
            steps += batches
            return batches * batch

        return Contender(f"{size:,} MB", timed(work))

    contenders = [contender(size) for size in megabytes]
    settings = {"batch": batch, "batches": batches, "block_size": block_size}
    return Comparison("windows by size of the corpus", "windows", contenders, contenders[0].name, settings)


class RowDataset:
    """Non-overlapping windows, one a call, as a textbook PyTorch dataset has them."""

    def __init__(self, ids: np.ndarray, block_size: int) -> None:
        self.ids, self.block_size = ids, block_size

    def __len__(self) -> int:
        return (len(self.ids) - 1) // self.block_size

    def __getitem__(self, index: int) -> Any:
        import torch

        start = index * self.block_size
        return torch.from_numpy(self.ids[start : start + self.block_size + 1].astype(np.int64))
