"""Which stretches of a text a model reads to be scored, and what it may see of the text before each
prediction.

    blocks      windows side by side, each read from nothing: contexts of 1 to the whole window
    sliding-N   a window moved by N; each target is scored with the longest context a window gives it, and
                the last window, too, is a whole one; with N the window itself that is what
                lm-evaluation-harness does
    nanogpt-sampled
                nanoGPT's estimate: windows from random places, each read from nothing and scored whole, so
                that a character counts several times or never; always the same places
    stateful    the text is read from left to right in one go: a recurrent model carries its state through, a
                transformer its keys and values, of which each layer sees those of the last window; so it
                sees a whole window before each prediction, and through its layers as many windows as these
    dynamic     the model goes on learning from what it has predicted; see `dynamic.py`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from craft.utils.common import PROTOCOLS, did_you_mean, parsed_stride
from craft.utils.errors import UserError

WARM_UP = 1024
"""Predictions that each of several parallel streams of a recurrent model makes before its own stretch, to
warm up its state."""
SAMPLED_WINDOWS = 200 * 64
"""nanoGPT's `eval_iters` times its batches on a GPU."""


@dataclass(frozen=True)
class Rows:
    """Stretches of a text, read side by side, each of which scores some of the predictions it makes.

    Prediction p of a text is that of id p + 1 from the ids up to p. Row i makes prediction `starts[i] + t`
    at its t-th place, and scores it if `first[i] <= starts[i] + t < last[i]`. The arrays are int64 [rows].
    """

    starts: np.ndarray
    first: np.ndarray
    last: np.ndarray
    length: int


def block_rows(predictions: int, block_size: int) -> Rows:
    """Blocks side by side, of which the last one may be shorter."""
    starts = np.arange(0, predictions, block_size)
    return Rows(starts, starts, np.minimum(starts + block_size, predictions), block_size)


def window_rows(predictions: int, block_size: int, stride: int) -> Rows:
    """Windows of `block_size` moved by `stride` over a text; the last one is moved less, to end with it."""
    count = 1 + -(-max(0, predictions - block_size) // stride)
    ends = np.minimum(block_size + stride * np.arange(count), predictions)
    first = np.concatenate([[0], ends[:-1]])
    return Rows(np.maximum(ends - block_size, 0), first, ends, block_size)


def sampled_rows(predictions: int, block_size: int) -> Rows:
    """As many windows as nanoGPT reads of a GPU's run, each place as likely."""
    last = max(0, predictions - block_size)
    starts = np.sort(np.random.default_rng(0).integers(0, last, SAMPLED_WINDOWS, endpoint=True))
    return Rows(starts, starts, np.minimum(starts + block_size, predictions), block_size)


def stream_rows(predictions: int, streams: int, warm_up: int) -> Rows:
    """A text cut into `streams` contiguous stretches, each read from `warm_up` predictions before its own."""
    bounds = np.linspace(0, predictions, streams + 1).astype(np.int64)
    starts = np.maximum(bounds[:-1] - warm_up, 0)
    return Rows(starts, bounds[:-1], bounds[1:], int((bounds[1:] - starts).max()))


def warm_up_of(model: Any) -> int:
    """What a stream reads before its own stretch: for a transformer all that its predictions depend on."""
    return WARM_UP if model.carries_state else (model.reach or 1) - 1


def parallel_streams(model: Any, predictions: int, at_most: int) -> int:
    """How many streams a text is long enough for, so that warming them up stays a small part of the work.

    Those of a transformer are as short as that allows, however many they are: rotary angles are as precise as
    positions are small.
    """
    fit = max(1, predictions // (4 * max(1, warm_up_of(model))))
    return min(at_most, fit) if model.carries_state else fit


def rows_of(
    protocol: str, predictions: int, block_size: int, model: Any, batch_size: int, streams: int | None = None
) -> Rows:
    """The rows in which a text is read; of "stateful" `streams` of them, or as many as suit the model."""
    if protocol == "nanogpt-sampled":
        return sampled_rows(predictions, block_size)
    if protocol == "blocks":
        return block_rows(predictions, block_size)
    if stride := stride_of(protocol):
        return window_rows(predictions, block_size, stride)
    streams = streams or parallel_streams(model, predictions, batch_size)
    return stream_rows(predictions, streams, warm_up_of(model))


def final_protocols(model: Any, more: Sequence[str] | None) -> tuple[str, ...]:
    """By which a finished model is scored: as it was made to be read, and by what else is asked for."""
    return tuple(dict.fromkeys((default_protocol(model), *(more or ()))))


def default_protocol(model: Any) -> str:
    """How a model is read unless something else is asked for: as it was made to be."""
    return "stateful" if model.carries_state else "blocks"


def stride_of(protocol: str) -> int:
    """The N of "sliding-N"; 0 for the others.

    Raises:
        UserError: if there is no such protocol.
    """
    stride = parsed_stride(protocol)
    if stride is None:
        near = did_you_mean(protocol, (*PROTOCOLS, "sliding-32", "dynamic"))
        raise UserError(
            f"unknown protocol {protocol!r}{near}; use {', '.join(PROTOCOLS)}, sliding-N or dynamic",
            code="setting-value",
        )
    return stride


def is_dynamic(protocol: str) -> bool:
    """Whether it is "dynamic", or "dynamic-0.001" with the rate.

    Raises:
        UserError: for a rate that is none.
    """
    name, _, rate = protocol.partition("-")
    if name != "dynamic":
        return False
    try:
        fine = protocol == name or 0 < float(rate) < math.inf
    except ValueError:
        fine = False
    if not fine:
        raise UserError(
            f"protocol {protocol!r}: the rate must be a number above 0, such as dynamic-0.001; 'dynamic' "
            "finds one",
            code="setting-value",
        )
    return True


def context_of(model: Any) -> int | None:
    """How many ids a model may read at once; None without a limit, as where a state is carried."""
    return None if model.carries_state else getattr(model.config, "max_position_embeddings", None)


def reads_on(model: Any) -> bool:
    """Whether a model can read a text on and on: by a state, or by a rolling window of its cache."""
    return bool(model.carries_state or getattr(model, "reach", None))


def check_name(protocol: str) -> None:
    """Refuses a name that no protocol has; the model needn't be there.

    Raises:
        UserError: with the names that there are.
    """
    _ = is_dynamic(protocol) or stride_of(protocol)


def check_protocol(protocol: str, model: Any, block_size: int) -> None:
    """Refuses a protocol that there isn't, or not for this model and window.

    Raises:
        UserError: with what to use instead.
    """
    stride = stride_of(protocol)
    context = context_of(model)
    if protocol == "stateful" and not reads_on(model):
        raise UserError(
            "protocol 'stateful' reads a text on and on, which this model can't; use "
            f"'sliding-{max(1, block_size // 2)}'",
            code="setting-conflict",
        )
    if context is not None and block_size > context:
        raise UserError(
            f"windows of {block_size} are longer than the model's context of {context}; use {context}",
            code="setting-value",
        )
    if protocol.startswith("sliding-") and not 1 <= stride <= block_size:
        raise UserError(
            f"protocol {protocol!r}: the stride must lie between 1 and the window of {block_size}",
            code="setting-value",
        )
