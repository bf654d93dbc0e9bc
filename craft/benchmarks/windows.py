"""Windows of T+1 ids per second out of a memory-mapped file of ids: how fast data can reach the model.

They come in shuffled order as int64 tensors [B, T+1]. Baseline: a map-style dataset with one row a call
under torch's DataLoader with shuffle=True, in the same process. By size: `CharDataset.windows` over files
of 1 MB to 5 GB of 8-bit ids (holes, which take no disk), read once before so that they lie in the system's
cache, the smallest as the baseline; beyond 256 MB ids are read by position instead of mapped.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from craft.benchmarks.harness import Comparison, Options, timed
from craft.benchmarks.texts import make_ids
from craft.data.char_dataset import CharDataset, train_loader

MEGABYTES = (1, 100, 1000, 5000)


def comparisons(options: Options) -> Iterator[Comparison]:
    block_size, batch, batches = (16, 8, 20) if options.quick else (256, 64, 400)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ids.bin"
        make_ids(3 * batches * batch * (block_size + 1)).astype(np.uint16).tofile(path)
        ids = np.memmap(path, dtype=np.uint16, mode="r")
        yield windows(ids, block_size, batch, batches)
        del ids  # Windows can't delete a mapped file
        yield by_size(Path(folder), (1, 2) if options.quick else MEGABYTES, block_size, batch)


def windows(ids: np.ndarray, block_size: int, batch: int, batches: int) -> Comparison:
    """The ways to draw `batches` batches of windows."""
    dataset = CharDataset(ids, block_size, batch, seed=0)
    loader = train_loader(dataset, batch, 1, 0, 1, make_batch=lambda windows: {"windows": windows})
    rows = DataLoader(
        np.lib.stride_tricks.sliding_window_view(ids, block_size + 1)[::block_size],
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        collate_fn=lambda rows: torch.from_numpy(np.stack(rows).astype(np.int64)),
    )

    def drawn(source: Callable[[], Any]) -> Callable[[], float]:
        return timed(lambda: deque(islice(source(), batches), maxlen=0))

    contenders = {
        "DataLoader over rows": drawn(lambda: iter(rows)),
        "craft train_loader": drawn(lambda: iter(loader)),
        "craft CharDataset.windows": drawn(lambda: (dataset.windows(dataset.starts(0, s)) for s in count())),
    }
    settings = {"ids": len(ids), "dtype": str(ids.dtype), "batch": batch}
    return Comparison(f"windows of {block_size + 1} ids", batches * batch, "windows", contenders, settings)


def by_size(folder: Path, megabytes: tuple[int, ...], block_size: int, batch: int) -> Comparison:
    """The same windows out of corpora of several sizes."""
    batches = 500

    def contender(size: int) -> Callable[[], float]:
        path = folder / f"{size}.bin"
        with path.open("wb") as file:
            file.truncate(size * 10**6)
        with path.open("rb") as written:
            while written.read(1 << 24):
                pass
        dataset = CharDataset(np.memmap(path, np.uint8, "r"), block_size, batch, seed=0)
        steps = count()  # other windows in each round

        def work() -> None:
            for step in islice(steps, batches):
                dataset.windows(dataset.starts(*divmod(step, dataset.steps_per_epoch)))

        return timed(work)

    contenders = {f"{size:,} MB": contender(size) for size in megabytes}
    settings = {"batch": batch, "block_size": block_size}
    return Comparison("windows by size of the corpus", batches * batch, "windows", contenders, settings)
