"""Losses of windows, whose labels are targets already, and those that a model adds by names of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from craft.utils.errors import UserError


def without_label_shift(smoother: Any) -> Any:
    """Label smoothing for windows: their labels are the next characters already and aren't shifted again.

    It replaces the loss of next characters; auxiliary losses are added to it as they are.
    """

    def smooth(outputs: Any, labels: torch.Tensor, shift_labels: bool = False, **kwargs: Any) -> torch.Tensor:
        auxiliary = outputs.get("auxiliary_losses") or {}
        return sum(auxiliary.values(), start=smoother(outputs, labels, **kwargs))

    return smooth


RESERVED = ("loss", "grad_norm", "learning_rate", "epoch", "step", "elapsed", "wall", "sample", "total_flos")
RESERVED_PREFIXES = ("eval_", "train_", "bits_per_", "nats_per_")
"""Names of what else is logged."""


class AuxiliaryLosses:
    """The losses that a model adds under names of their own, summed up since they were logged last.

    They are part of the loss that is trained, and never of bits per character. All processes add the same
    names between two calls of `drain`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = 0

    def add(self, losses: dict[str, torch.Tensor] | None, last: bool) -> None:
        """Takes over those of a micro-batch; `last` for the last one of a step.

        Raises:
            UserError: for a name that another figure has, or a `compute_loss_func`, which would drop them.
        """
        if losses and self.trainer.compute_loss_func is not None:
            raise UserError(
                f"compute_loss_func would leave the model's own {', '.join(losses)} out of the loss; replace "
                "compute_loss of the model instead",
                code="setting-conflict",
            )
        for name, value in (losses or {}).items():
            if name not in self.sums and self._is_reserved(name):
                raise UserError(
                    f"compute_loss of the model names an auxiliary loss {name!r}, as another figure of "
                    "training is called; give it another name",
                    code="model-invalid",
                )
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()
        self.steps += last

    def _is_reserved(self, name: str) -> bool:
        unit = self.trainer.units.unit
        return name in (*RESERVED, unit.plural, unit.speed) or name.startswith(RESERVED_PREFIXES)

    def drain(self) -> dict[str, float]:
        """Their means over steps and processes since the last call; all processes come here."""
        args, gather = self.trainer.args, self.trainer.accelerator.gather
        # Each was divided by the predictions of all processes, or of its own.
        shares = max(1, self.steps) * (1 if args.average_tokens_across_devices else args.world_size)
        means = {name: gather(total).sum().item() / shares for name, total in sorted(self.sums.items())}
        self.sums, self.steps = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """The sums of this process since they were logged last, and over how many steps."""
        return {"sums": self.sums, "steps": self.steps}

    def load_rank_states(self, states: Sequence[dict[str, Any]], rank: int) -> None:
        """Goes on from a checkpoint; on another number of processes each takes an equal share."""
        args, divisor = self.trainer.args, 1
        if len(states) == args.world_size:
            states = [states[rank]]
        else:  # see drain: what is summed over processes, or averaged over them, stays the same
            divisor = args.world_size if args.average_tokens_across_devices else len(states)
        total = {name: sum(state["sums"][name] for state in states) for name in states[0]["sums"]}
        self.sums = {name: value.to(args.device) / divisor for name, value in total.items()}
        self.steps = states[0]["steps"]
