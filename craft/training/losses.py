"""Losses of windows, whose labels are targets already, and those that a model adds by names of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def aligned(smoother: Any) -> Any:
    """Label smoothing for windows: their labels are the next characters already and aren't shifted again."""

    def smooth(outputs: Any, labels: torch.Tensor, shift_labels: bool = False, **kwargs: Any) -> torch.Tensor:
        return smoother(outputs, labels, **kwargs)

    return smooth


class AuxiliaryLosses:
    """The losses that a model adds under names of their own, summed up since they were logged last.

    They are part of the loss that is trained, and never of bits per character.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = 0

    def add(self, losses: dict[str, torch.Tensor] | None, last: bool) -> None:
        """Takes over those of a micro-batch; `last` for the last one of a step."""
        for name, value in (losses or {}).items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()
        self.steps += last and bool(losses)

    def drain(self) -> dict[str, float]:
        """Their means over steps and processes since the last call; all processes come here."""
        args, gather = self.trainer.args, self.trainer.accelerator.gather
        # Each was divided by the predictions of all processes, or of its own.
        shares = max(1, self.steps) * (1 if args.average_tokens_across_devices else args.world_size)
        means = {name: gather(total).sum().item() / shares for name, total in self.sums.items()}
        self.sums, self.steps = {}, 0
        return means

    def snapshot(self) -> Callable[[], None]:
        before = dict(self.sums), self.steps

        def undo() -> None:
            self.sums, self.steps = dict(before[0]), before[1]

        return undo

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "steps": self.steps}

    def load_rank_states(self, states: Sequence[dict[str, Any]], rank: int) -> None:
        own = states[rank] if len(states) == self.trainer.args.world_size else states[0]
        device = self.trainer.args.device
        self.sums = {name: total.to(device) for name, total in own["sums"].items()}
        self.steps = own["steps"]
