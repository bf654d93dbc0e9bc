"""Ids to bytes and back, by a model: what it says comes next, and a range coder (`constriction`).

A decoder needs the very probabilities that the encoder had, to the last bit, and those of torch depend on how
many rows are computed at once. So both read by one function, `_read_rows`, with as many rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from craft.evaluation.protocols import context_of
from craft.utils.errors import UserError

TRIED = 4096
"""Ids, of all streams together, by which the way of reading with a limited context is chosen."""


def encode(model: Any, ids: np.ndarray, streams: int) -> tuple[int, bytes]:
    """Codes ids [n], cut into pieces that are read side by side, each from nothing.

    Returns:
        window: the last half of so many ids is read anew whenever the context is full; 0: the model's own
            `step` goes on without end. Whichever takes fewer bits.
        words: of the coder, 32 bits each.

    Raises:
        UserError: if what the model says are no probabilities.
    """
    from constriction import stream as coders

    coder, family = coders.queue.RangeEncoder(), coders.model.Categorical(perfect=False)
    lengths = parts_of(len(ids), streams)
    rows = np.zeros((streams, int(lengths.max(initial=0))), np.int32)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = ids

    def code(place: int, likely: np.ndarray) -> np.ndarray:
        coder.encode(rows[: len(likely), place].copy(), family, likely)
        return rows[: len(likely), place]

    window = _best_window(model, rows, lengths)
    _read_rows(model, lengths, window, code)
    return window, coder.get_compressed().astype("<u4").tobytes()


def decode(model: Any, count: int, streams: int, window: int, words: bytes) -> np.ndarray | None:
    """The ids [count] that were encoded; None where no ids have such words by these probabilities."""
    from constriction import stream as coders

    coder = coders.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
    family, lengths = coders.model.Categorical(perfect=False), parts_of(count, streams)
    try:
        rows = _read_rows(model, lengths, window, lambda _, likely: coder.decode(family, likely))
    except AssertionError:
        return None
    return rows[np.arange(rows.shape[1]) < lengths[:, None]]


def _read_rows(
    model: Any, lengths: np.ndarray, window: int, follow: Callable[[int, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Reads rows side by side, an id at a time, by the model's `prefill` and `step`.

    Args:
        lengths: of the rows, the longest first.
        window: see `encode`.
        follow: says of a place, and the probabilities [n, V] there, which ids [n] stand there in the first n
            rows, those that are that long. The first place is uniform.

    Returns:
        ids [rows, longest].
    """
    longest, size = int(lengths.max(initial=0)), model.get_input_embeddings().weight.shape[0]
    ids = np.zeros((len(lengths), longest), np.int64)
    likely, state, begin = np.full((len(lengths), size), 1 / size, np.float32), None, 0
    with torch.inference_mode():
        for place in range(longest):
            live = np.count_nonzero(lengths > place)
            ids[:live, place] = follow(place, likely[:live])
            if place + 1 == longest:
                break
            full = bool(window) and place - begin == window
            if full:
                begin = place + 1 - max(1, window // 2)
            if state is None or full:
                logits, state = model.prefill(torch.from_numpy(ids[:, begin : place + 1]).to(model.device))
            else:
                logits, state = model.step(torch.from_numpy(ids[:, place]).to(model.device), state)
            likely = logits.float().softmax(dim=-1).cpu().numpy()
            if not np.isfinite(likely).all():
                raise UserError(
                    f"the model's probabilities behind character {place + 1:,} aren't numbers",
                    code="not-finite",
                )
    return ids


def _best_window(model: Any, rows: np.ndarray, lengths: np.ndarray) -> int:
    """0 or the context of the model, whichever codes the beginning of the rows in fewer bits."""
    context = context_of(model)
    if context is None or lengths[0] <= context:
        return 0
    begins = np.minimum(lengths, max(4 * context, TRIED // len(lengths)))

    def cost(window: int) -> float:
        nats = [0.0]

        def add(place: int, likely: np.ndarray) -> np.ndarray:
            ids = rows[: len(likely), place]
            nats[0] -= float(np.log(likely[np.arange(len(ids)), ids] + 1e-30).sum())
            return ids

        _read_rows(model, begins, window, add)
        return nats[0]

    return min(0, context, key=cost)


def parts_of(ids: int, streams: int) -> np.ndarray:
    """How long the pieces of a text are, [streams], the longer ones first."""
    return ids // streams + (np.arange(streams) < ids % streams)
