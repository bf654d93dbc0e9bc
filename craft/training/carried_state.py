"""The recurrent state between windows: what truncated backpropagation through time carries from step to
step.

Row j of the global batch is stream j. Micro-step g of process r works on rows (g * world + r) * B to that +
B, so every micro-step has a slot of its own, and a checkpoint written by other processes or with another
accumulation can be cut anew: its slots, laid side by side in that order, are the streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class CarriedState:
    """The state of this process' streams after their last window.

    Args:
        model: converts between its cache and a list of batch-first tensors.
        args: of the run, which say how the rows of the global batch are shared out.
    """

    def __init__(self, model: Any, args: Any) -> None:
        self.model, self.args = model, args
        self.slots: dict[int, list[Tensor]] = {}

    def before(self, micro_step: int, step_in_epoch: int) -> Any | None:
        """The `past_key_values` for windows; None means zero, as at the start of an epoch."""
        if step_in_epoch == 0 or micro_step not in self.slots:
            return None
        return self.model.state_from_tensors(self.slots[micro_step])

    def after(self, micro_step: int, cache: Any) -> None:
        """Keeps the state behind windows, detached from its graph."""
        self.slots[micro_step] = self.model.state_tensors(cache)

    def state_dict(self) -> dict[str, Tensor]:
        """`state.{micro_step}.{index}` -> tensor [B, ...]."""
        return {
            f"state.{slot}.{i}": tensor.contiguous()
            for slot, tensors in self.slots.items()
            for i, tensor in enumerate(tensors)
        }

    def load_rank_states(self, states: Sequence[dict[str, Tensor]], rank: int) -> None:
        """Takes this process' share of the streams of the run that wrote a checkpoint.

        If there is another number of streams now, as was allowed, all of them start from zero.

        Args:
            states: `state_dict()` of each process of that run, by rank.
        """
        streams = joined(states)
        self.slots = {}
        shares = self.args.shares
        size = self.args.train_batch_size
        if not streams or len(streams[0]) != shares * size:
            return
        for micro_step in range(self.args.gradient_accumulation_steps):
            first = (micro_step * self.args.world_size + rank) * size
            cut = [stream[first : first + size].to(self.args.device) for stream in streams]
            self.slots[micro_step] = [tensor.clone() for tensor in cut]


def joined(per_rank: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """The state of all streams in order, each tensor [S, ...]; empty if nothing was carried."""
    names = [name.split(".")[1:] for name in per_rank[0] if name.startswith("state.")] if per_rank else []
    slots = sorted({int(slot) for slot, _ in names})
    indices = sorted({int(index) for _, index in names})
    return [torch.cat([saved[f"state.{slot}.{i}"] for slot in slots for saved in per_rank]) for i in indices]
