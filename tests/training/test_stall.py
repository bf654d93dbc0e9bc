from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from craft.training.callbacks.stall import Watchdog

Watched = tuple[list[float], Watchdog, Any, Any]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """The time, which the test moves; a watchdog that looks when told; the state of a run; and nothing."""
    now = [100.0]
    monkeypatch.setattr("craft.training.callbacks.stall.time.monotonic", lambda: now[0])
    monkeypatch.setattr("craft.training.callbacks.stall.threading.Thread.start", lambda self: None)
    dog, state = Watchdog(seconds=60), SimpleNamespace(global_step=0, is_world_process_zero=True)
    nothing: Any = None
    dog.on_train_begin(nothing, state, nothing)
    return now, dog, state, nothing


def test_a_standstill_and_its_end_are_logged_once(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    now, dog, state, nothing = watched
    with caplog.at_level(logging.WARNING, logger="craft"):
        for _ in range(5):
            now[0] += 8
            state.global_step += 1
            dog.on_step_end(nothing, state, nothing)
        now[0] += 75
        dog.check()
        assert caplog.text == ""  # a minute over, but not ten times as long as usual
        now[0] += 10
        dog.check()
        dog.check()
        now[0] += 5
        state.global_step += 1
        dog.on_step_end(nothing, state, nothing)
        dog.check()
    first, second = (record.message for record in caplog.records)
    assert all(value in first for value in ("0:01:25", "8 s", "step 5"))
    assert "0:01:30" in second
    assert 90 not in dog.times
    dog.close()


def test_long_work_within_a_step_that_goes_on_is_no_standstill(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    now, dog, state, nothing = watched
    now[0] += 1
    dog.on_step_end(nothing, state, nothing)
    for _ in range(5):  # batches of an evaluation
        now[0] += 40
        dog.check()
        dog.alive()
    now[0] += 1
    dog.on_step_end(nothing, state, nothing)
    assert list(dog.times) == [1, 1]
    assert caplog.text == ""
    now[0] += 61  # one of them hangs
    dog.check()
    assert len(caplog.records) == 1
    dog.close()
