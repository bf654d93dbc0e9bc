"""How much room a run needs on the disk, said before it starts and when a save finds none.

A checkpoint holds the weights, the optimizer's state and, with an average, the weights once more. While one
is written, those that are kept are still there: that is the peak.
"""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from craft.utils.errors import TrainingFailed, UserError
from craft.utils.logging import get_logger

logger = get_logger(__name__)

SMALL_FILES = 256 * 1024
"""Tokenizer, code, JSON, generators and carried states of a checkpoint, roughly."""
STATE_SIZES = {"adafactor": 0.1, "8bit": 0.5, "4bit": 0.25, "lion": 1, "adagrad": 1, "rmsprop": 1, "sgd": 0}
"""Of an optimizer, as multiples of the parameters' size; the others keep two moments of every parameter."""

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model in training.

    Args:
        parameters: the weights, tied ones once, and buffers.
        trainable: the part of them that has gradients.
        optimizer: its state, once it has taken a step.
        average: a second copy of the weights.
    """

    parameters: int
    trainable: int
    optimizer: int
    average: int

    @classmethod
    def of(cls, model: nn.Module, optim: str, average: bool) -> Sizes:
        buffers = sum(_size(buffer) for buffer in model.buffers())
        weights = list(model.parameters())
        trained = [p for p in weights if p.requires_grad]
        if optim == "muon":  # one buffer for the matrices inside the blocks, two moments for the rest
            of_muon: Any = getattr(model, "muon_blocks", lambda name: 0)
            named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
            state = sum(_size(p) * (1 if p.ndim == 2 and of_muon(name) else 2) for name, p in named)
        else:
            share = next((share for name, share in STATE_SIZES.items() if name in optim), 2)
            state = int(share * sum(_size(p) for p in trained))
        total = sum(_size(p) for p in weights)
        return cls(total + buffers, sum(_size(p) for p in trained), state, total if average else 0)

    def checkpoint(self, only_model: bool) -> int:
        return self.parameters + (0 if only_model else self.optimizer + self.average) + SMALL_FILES


def planned_saves(args: Any, steps: int) -> int:
    """How many checkpoints a run of so many steps writes, new best ones apart."""
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "no":
        return 1  # when it is stopped
    if strategy != "steps":
        return max(1, math.ceil(args.num_train_epochs))
    every = args.save_steps * steps if args.save_steps < 1 else args.save_steps
    return math.ceil(steps / max(1, every))


def check_room(
    run_dir: Path,
    checkpoint: int,
    *,
    keep: int | None,
    best: bool,
    saves: int,
    existing: int = 0,
    sent: int = 0,
) -> None:
    """Says what a run will need at most, and refuses one that can't fit.

    Args:
        checkpoint: bytes of one.
        keep: how many are kept, `None` for all.
        best: whether the best one may be kept besides.
        saves: how many are going to be written.
        existing: bytes of those that are there already.
        sent: how many may be on their way to the Hub after they were deleted here.

    Raises:
        UserError: if the disk has less room than that.
    """
    kept = min(saves, saves if keep is None else keep + best)
    sent = min(sent, saves - kept)
    peak = (kept + (saves > kept) + sent) * checkpoint
    free = free_bytes(run_dir)
    what = f"{bytes_text(checkpoint)} a checkpoint, {kept} kept" + (", one being written" * (saves > kept))
    what += f", {sent} being uploaded" if sent else ""
    logger.info(f"disk      up to {bytes_text(peak)} ({what}), {bytes_text(free)} free")
    if peak - existing <= free:
        return
    fewer = "" if keep == 1 else "training.save_total_limit=1, "
    raise UserError(
        f"the checkpoints of this run need {peak - existing:,} bytes ({what}) and {run_dir} has {free:,} "
        f"bytes free; make room, or set {fewer}larger training.save_steps, or another training.output_dir"
    )


@contextmanager
def writing(what: str, folder: Path, way_out: Callable[[], str]) -> Iterator[None]:
    """Turns a disk that refuses into a sentence.

    Args:
        what: is written inside.
        way_out: how to go on, for the end of the sentence.

    Raises:
        TrainingFailed: with the folder and its free bytes.
    """
    try:
        yield
    except Exception as error:
        refused = isinstance(error, OSError) and error.errno in REFUSALS
        # Rust has words instead of numbers, and no class of its own for them.
        if not refused and "(os error 28)" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise TrainingFailed(
            f"{what} can't be written to {folder} ({reason}): {free_bytes(folder):,} bytes are free there; "
            f"make room; {way_out()}"
        ) from error


def free_bytes(folder: Path) -> int:
    """What may still be written where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def bytes_text(size: float) -> str:
    """`13_400_000 -> '13.4 MB'`."""
    for limit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.1f} {name}"
    return f"{size:.0f} bytes"


def _size(tensor: Tensor | Any) -> int:
    return int(tensor.numel() * tensor.element_size())
