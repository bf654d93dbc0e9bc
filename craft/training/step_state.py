"""`StepState`: what a step changes beside the weights, so that it can be undone or only tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def rng_devices(device: torch.device) -> list[int]:
    """The devices with a random number generator of their own, for `torch.random.fork_rng`."""
    return [torch.cuda.current_device()] if device.type == "cuda" else []


class StepState:
    """Takes steps of a trainer back.

    Args:
        trainer: its gradients are dropped, and those of its `rank_parts` that have a `snapshot()`, which
            returns how to undo a step, go back.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._undo: list[Callable[[], None]] = []

    def snapshot(self) -> None:
        """Remembers the state that a skipped step goes back to."""
        parts = self.trainer.rank_parts().values()
        self._undo = [part.snapshot() for part in parts if hasattr(part, "snapshot")]

    def rollback(self) -> None:
        """Undoes what the step did so far, but for its random numbers."""
        self.trainer.model.zero_grad(set_to_none=True)
        for undo in self._undo:
            undo()

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Inside, a step may be tried: no gradient, random number or state of it stays."""
        model, kept = self.trainer.model, self._undo
        training = model.training
        model.train()
        self.snapshot()
        try:
            with torch.random.fork_rng(rng_devices(self.trainer.args.device)):
                yield
        finally:
            self.rollback()
            model.train(training)
            self._undo = kept
