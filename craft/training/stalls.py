"""Stalled progress, seen in the log: a step that takes far longer than others did is told while it lasts."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from craft.training.distributed import place_of_main_thread, silent_peers
from craft.utils.common import human_time
from craft.utils.logging import get_logger

if TYPE_CHECKING:
    from craft.training.logging import Stopwatch

logger = get_logger(__name__)

PATIENCE = 60.0
"""Seconds that any step may take before anything is said."""
UNUSUAL = 20
"""How many times an ordinary step a step must have lasted by then."""


class StallWatch(threading.Thread):
    """Warns when a step doesn't end, and again each time that it has lasted twice as long.

    Args:
        watch: counts the seconds of training, without those of evaluating and saving.
        every: seconds between two looks.
    """

    def __init__(self, watch: Stopwatch, every: float = 5.0) -> None:
        super().__init__(name="craft-stalls", daemon=True)
        self.watch, self.every = watch, every
        self.steps, self.step = 0, 0
        self.began = self.first = watch.total()
        self.told = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self.every):
            self.look()

    def step_done(self, step: int) -> None:
        """Notes the end of a step; called at every one."""
        self.step, self.steps, self.began, self.told = step, self.steps + 1, self.watch.total(), 0.0

    def close(self) -> None:
        self._over.set()

    def look(self) -> None:
        lasts = self.watch.total() - self.began
        usual = (self.began - self.first) / self.steps if self.steps else 0.0
        if lasts < max(PATIENCE, UNUSUAL * usual, 2 * self.told):
            return
        self.told = lasts
        others = silent_peers()
        logger.warning(
            f"step {self.step + 1:,} has been under way for {human_time(lasts)}"
            + (f", where {usual:.2g} s are usual" if self.steps else "")
            + f"; it is in {place_of_main_thread()}"
            + (f"; {others}" if others else "")
        )
