from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from craft.evaluation.protocols import (
    Rows,
    block_rows,
    check_protocol,
    default_protocol,
    parallel_streams,
    rows_of,
    stream_rows,
    window_rows,
)
from craft.utils.errors import Code


def contexts(rows: Rows, predictions: int) -> np.ndarray:
    """How many ids each prediction was made from; fails if one was scored twice or never."""
    seen = np.zeros(predictions, dtype=np.int64)
    for start, first, last in zip(rows.starts, rows.first, rows.last):
        assert 0 <= start <= first < last <= predictions
        assert last - start <= rows.length
        assert not seen[first:last].any()
        seen[first:last] = np.arange(first, last) - start + 1
    assert seen.all()
    return seen


@given(st.integers(1, 400), st.integers(1, 40), st.data())
def test_windows_score_every_prediction_once_with_the_longest_context(
    predictions: int, block_size: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, block_size))
    seen = contexts(block_rows(predictions, block_size), predictions)
    assert (seen == np.arange(predictions) % block_size + 1).all()
    seen = contexts(window_rows(predictions, block_size, stride), predictions)
    start = seen[:block_size]
    assert (start == np.arange(len(start)) + 1).all()  # the first window is scored whole
    # Behind it, a window ends at most `stride` predictions after the last one and is as long as it can be.
    assert (seen[block_size:] > block_size - stride).all()


@given(st.integers(1, 5000), st.integers(1, 20), st.integers(0, 600))
def test_streams_score_every_prediction_once_after_warming_up(
    predictions: int, streams: int, warm_up: int
) -> None:
    streams = min(streams, predictions)
    seen = contexts(stream_rows(predictions, streams, warm_up), predictions)
    assert (seen >= np.minimum(np.arange(predictions), warm_up) + 1).all()


def test_sampled_windows_are_as_many_as_those_of_nanogpt_and_whole() -> None:
    rows = rows_of("nanogpt-sampled", 300, 256, RECURRENT, 64)
    assert len(rows.starts) == 200 * 64
    assert (rows.first == rows.starts).all()
    assert (rows.last - rows.first == 256).all()
    places, times = np.unique(rows.starts, return_counts=True)
    assert (places == np.arange(300 - 256 + 1)).all()
    assert times.max() < 1.5 * times.min()  # each place is as likely
    assert (rows_of("nanogpt-sampled", 300, 256, RECURRENT, 64).starts == rows.starts).all()


def test_a_text_shorter_than_a_window_is_sampled_as_one_window() -> None:
    rows = rows_of("nanogpt-sampled", 10, 64, RECURRENT, 64)
    assert not rows.starts.any()
    assert (rows.last == 10).all()


def test_one_stream_reads_everything_in_one_pass() -> None:
    assert (contexts(stream_rows(100, 1, 8), 100) == np.arange(100) + 1).all()


def test_short_texts_are_not_split_into_streams() -> None:
    assert parallel_streams(RECURRENT, 4000, 64) == 1
    assert parallel_streams(RECURRENT, 111_540, 64) == 27
    assert parallel_streams(RECURRENT, 10_000_000, 64) == 64


@given(st.integers(1, 5000), st.integers(1, 300), st.integers(1, 64))
def test_streams_of_a_transformer_are_the_same_for_any_batch_and_their_positions_small(
    predictions: int, reach: int, batch_size: int
) -> None:
    model = SimpleNamespace(carries_state=False, reach=reach)
    rows = rows_of("stateful", predictions, 64, model, batch_size)
    assert len(rows.starts) == len(rows_of("stateful", predictions, 64, model, 1).starts)
    assert rows.length <= 9 * reach
    seen = contexts(rows, predictions)
    assert (seen >= np.minimum(np.arange(predictions) + 1, reach)).all()


RECURRENT = SimpleNamespace(carries_state=True, config=SimpleNamespace(max_position_embeddings=64))
ROTARY, LEARNED = (
    SimpleNamespace(carries_state=False, reach=reach, config=RECURRENT.config) for reach in (127, None)
)


@pytest.mark.parametrize(
    ("protocol", "block_size", "code", "values"),
    [
        ("stateful", 64, "setting-conflict", ("'stateful'", "'sliding-32'")),
        ("sliding-65", 64, "setting-value", ("'sliding-65'", 1, 64)),
        ("sliding-0", 64, "setting-value", ("'sliding-0'", 1, 64)),
        ("sliding", 64, "setting-value", ("'sliding'", "sliding-N")),
        ("block", 64, "setting-value", ("'block'", "'blocks'")),
        ("blocks", 128, "setting-value", (128, 64)),
    ],
)
def test_a_protocol_that_the_model_cannot_use_is_refused(
    protocol: str, block_size: int, code: Code, values: tuple[object, ...]
) -> None:
    with refused(code, *values):
        check_protocol(protocol, LEARNED, block_size)


def test_recurrent_models_are_read_statefully_and_others_in_blocks() -> None:
    assert default_protocol(RECURRENT) == "stateful"
    assert default_protocol(ROTARY) == default_protocol(LEARNED) == "blocks"


def test_a_recurrent_model_has_no_longest_window() -> None:
    check_protocol("blocks", RECURRENT, 128)
    check_protocol("stateful", RECURRENT, 128)
    check_protocol("sliding-32", LEARNED, 64)
    check_protocol("stateful", ROTARY, 64)
