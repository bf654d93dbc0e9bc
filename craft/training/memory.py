"""Running out of memory: what took it, how much should fit, and how a step is done in smaller parts.

A micro-batch can be cut into parts whose gradients add up, since the loss is a sum over the predictions of
the global batch, divided by their number: the step is the same, in less memory.
"""

from __future__ import annotations

import gc
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from craft.training.checkpointing.disk import Sizes, bytes_text

CPU_WORDS = ("can't allocate memory", "not enough memory", "MPS backend out of memory")
HEADROOM = 1.3
"""What is needed in passing, beside what is kept for the backward pass."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is short, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_WORDS)


def free_memory(device: torch.device) -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where that isn't known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        import resource

        space = resource.getrlimit(resource.RLIMIT_AS)[0]
        if space != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            limits.append(max(0, space - used))
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most.isdigit():
            limits.append(max(0, int(most) - int((group / "memory.current").read_text())))
    except (OSError, ImportError, ValueError, IndexError):
        pass
    return min(limits, default=None)


class SavedActivationBytes:
    """Counts what a forward pass saves for the backward one: the activations.

    Attributes:
        bytes: of all tensors that were saved, each piece of memory once, parameters left out.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.bytes = 0
        self._seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in self._seen:
            self._seen.add(place)
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def explanation(rows: int, sizes: Sizes, per_row: int | None, free: int | None) -> tuple[str, int]:
    """What took the memory, and how many windows at once should fit.

    Args:
        rows: windows at once that were too many.
        per_row: bytes of activations of one window, measured; None if not even one could be.
        free: bytes that are there now, with parameters in place and neither gradients nor activations.

    Returns:
        A sentence, and the number of windows (0 if not even one fits).
    """
    took = (
        f"parameters {bytes_text(sizes.parameters + sizes.average)}, "
        f"gradients {bytes_text(sizes.trainable)}, optimizer {bytes_text(sizes.optimizer)}"
    )
    if per_row is None:
        return f"{took}, and not even the activations of one window fit", 0
    took += f", activations about {bytes_text(per_row * rows)} ({bytes_text(per_row)} a window)"
    most = rows - 1
    if free is not None:
        most = min(most, int(max(0, free - sizes.trainable) / (per_row * HEADROOM)))
    return f"{took}; about {most} should fit" if most else f"{took}; not even one window fits", most


def few(inputs: dict[str, Any], ids: int) -> dict[str, Any]:
    """The beginnings of some windows of a micro-batch: about as many ids as that, at least 16."""
    rows, length = inputs["input_ids"].shape
    length = min(length, 32, max(16, ids))
    rows = max(1, min(rows, ids // length))
    cut = (slice(rows), slice(length))
    return {k: v[cut[: v.ndim]] if isinstance(v, Tensor) and v.ndim else v for k, v in inputs.items()}


def in_parts(inputs: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """A micro-batch cut into `parts` of nearly equal sizes, each with its `part`: begin, end, rows."""
    rows = len(inputs["input_ids"])
    bounds = [rows * i // parts for i in range(parts + 1)]
    cut = []
    for begin, end in pairwise(bounds):
        piece = {k: v[begin:end] if isinstance(v, Tensor) and v.ndim else v for k, v in inputs.items()}
        cut.append({**piece, "part": (begin, end, rows)})
    return cut
