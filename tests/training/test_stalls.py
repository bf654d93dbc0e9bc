from __future__ import annotations

import logging

import pytest

from craft.training.logging import Stopwatch
from craft.training.stalls import StallWatch


@pytest.fixture
def stalls(monkeypatch: pytest.MonkeyPatch) -> tuple[StallWatch, list[float]]:
    """Not started: the test looks for it. And the clock."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch()
    watch.run()
    return StallWatch(watch), now


def test_a_stalled_step_is_told_and_again_after_twice_the_time(
    stalls: tuple[StallWatch, list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    watch, now = stalls
    told: list[float] = []
    with caplog.at_level(logging.WARNING, logger="craft"):
        for step in range(1, 41):
            now[0] += 0.5
            watch.step_done(step)
        for _ in range(300):
            now[0] += 1
            watch.look()
            if len(caplog.messages) > len(told):
                told.append(now[0] - 120)
    assert told == [60, 120, 240]
    assert caplog.messages[0].startswith(
        "step 41 has been under way for 1:00, where 0.5 s are usual; it is in "
    )


def test_slow_steps_and_evaluations_are_no_stalls(
    stalls: tuple[StallWatch, list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    watch, now = stalls
    with caplog.at_level(logging.WARNING, logger="craft"):
        for step in range(1, 4):
            now[0] += 30
            watch.step_done(step)
        now[0] += 300
        watch.look()  # ten times as long as usual
        watch.step_done(4)
        watch.watch.pause()  # to evaluate
        now[0] += 5000
        watch.look()
    assert caplog.messages == []


def test_the_first_step_and_the_end(
    stalls: tuple[StallWatch, list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    watch, now = stalls
    watch.every = 0.001
    watch.start()
    with caplog.at_level(logging.WARNING, logger="craft"):
        now[0] += 61
        watch.close()
        watch.join()
        watch.look()
    assert caplog.messages[-1].startswith("step 1 has been under way for 1:01; it is in ")
