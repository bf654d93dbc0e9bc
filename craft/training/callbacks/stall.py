"""A line in the log when training stands still: a disk that hangs, a machine that swaps, a late peer."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback

from craft.training.distributed.heartbeat import main_thread_location
from craft.training.distributed.rendezvous import silent_peers
from craft.utils.logging import get_logger

logger = get_logger(__name__)

TIMES_LONGER = 10
"""A step is late when it takes so many times as long as the median of the last ones."""


class Watchdog(TrainerCallback):
    """Logs each stall once: since when no step was finished, and where the program is.

    Saves count too: they are part of what takes long. An evaluation reports after each of its batches.

    Args:
        seconds: the shortest standstill that is worth a line; None for no lines.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds or 0.0
        self.times: deque[float] = deque(maxlen=64)
        self.late = False
        self._last = 0.0
        self._over = threading.Event()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._over.clear()
        self.times.clear()
        self._last, self.late, self._state = time.monotonic(), False, state
        if self.seconds and state.is_world_process_zero:
            threading.Thread(target=self._watch, name="craft-watchdog", daemon=True).start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        late, took = self.late, self.alive()
        if not late:
            self.times.append(took)

    def alive(self) -> float:
        """Notes that something was done, also within a step; returns how long it took."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        if self.late:
            self.late = False
            logger.warning(f"going on after {timedelta(seconds=int(took))}")
        return took

    def close(self) -> None:
        self._over.set()

    def check(self) -> None:
        """Logs a standstill, once."""
        waited = time.monotonic() - self._last
        usual = statistics.median(self.times) if self.times else 0.0
        if self.late or waited < max(self.seconds, TIMES_LONGER * usual):
            return
        self.late = True
        logger.warning(
            f"no step was finished for {timedelta(seconds=int(waited))} (usually {usual:.2g} s): after step "
            f"{self._state.global_step:,}, in {main_thread_location()}; {silent_peers() or 'still waiting'}"
        )

    def _watch(self) -> None:
        while not self._over.wait(min(5.0, self.seconds / 4)):
            self.check()
