"""Running out of memory, and cutting a micro-batch into parts that need less.

The gradients of parts add up, since the loss is a sum over the predictions of the global batch, divided by
their number: the step is the same, in less memory.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory is short, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)


def in_parts(inputs: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """A micro-batch cut into `parts` of nearly equal sizes, each with its `part`: begin, end, rows."""
    rows = len(inputs["input_ids"])
    parts = min(parts, rows)
    bounds = [rows * i // parts for i in range(parts + 1)]
    cut = []
    for begin, end in pairwise(bounds):
        piece = {k: v[begin:end] if isinstance(v, Tensor) and v.ndim else v for k, v in inputs.items()}
        cut.append({**piece, "part": (begin, end, rows)})
    return cut
