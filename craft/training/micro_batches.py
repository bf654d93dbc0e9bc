"""`MicroBatches`: a step in as many parts as fit into memory, and what to do if even one doesn't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from craft.training.checkpointing.parts import State
from craft.training.memory import in_parts, is_out_of_memory
from craft.utils.errors import TrainingFailed
from craft.utils.logging import get_logger

logger = get_logger(__name__)

Step = Callable[[Any, dict[str, Any], Any], Tensor]
"""(model, inputs, number of predictions in the global batch) -> loss, with gradients added up."""


class MicroBatches:
    """Cuts the micro-batches of a process into halves until they fit.

    Args:
        trainer: whose steps they are.

    Attributes:
        parts: into how many parts this process cuts its micro-batches.
        searching: whether it may cut them further (`auto_find_batch_size`).
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.parts, self.searching = 1, False

    def state_dict(self) -> State:
        return {"parts": self.parts}

    def load_rank_states(self, states: Sequence[State], rank: int) -> None:
        if len(states) == self.trainer.args.world_size:
            self.parts = states[rank]["parts"]

    def run(self, step: Step, model: Any, inputs: dict[str, Any], count: Any) -> Tensor:
        """Takes one micro-batch through forward and backward, part by part."""
        if self.parts == 1:
            return step(model, inputs, count)
        pieces = in_parts(inputs, self.parts)
        losses = []
        for piece in pieces:  # one all-reduce of gradients, with the last piece
            with self.trainer.accelerator.no_sync(model) if piece is not pieces[-1] else nullcontext():
                losses.append(step(model, piece, count))
        return torch.stack(losses).sum()

    def find_size(self) -> None:
        """Before the first step: cuts micro-batches into halves until a forward and backward pass fits,
        beside the optimizer's state.

        Raises:
            TrainingFailed: if not even one window fits.
        """
        rows = self.trainer.args.train_batch_size
        while self.searching and not self._fits():
            clear_device_cache(garbage_collection=True)
            if self.parts >= rows:
                raise TrainingFailed(self.out_of_memory_message(), code="out-of-memory")
            self.parts = min(rows, 2 * self.parts)
            logger.warning(
                f"out of memory: {-(-rows // self.parts)} windows at once from now on, in {self.parts} "
                f"parts; the global batch of {self.trainer.args.global_batch_size} stays"
            )

    def _fits(self) -> bool:
        trainer, device = self.trainer, self.trainer.args.device
        weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
        moments = 2 * weights if device.type == "cuda" and trainer.resumed is None else 0
        with trainer.step_state.preserved():  # a loader draws a random number
            batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        try:
            with trainer.step_state.preserved():
                reserved = torch.empty(moments, dtype=torch.uint8, device=device)  # for the optimizer
                piece = max(in_parts(batch, self.parts), key=lambda part: len(part["input_ids"]))
                with trainer.accelerator.autocast():
                    loss = trainer.compute_loss(trainer.model, piece, num_items_in_batch=1)
                loss.backward()
                del reserved
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False

    def out_of_memory_message(self) -> str:
        """What to say of a run that is out of memory."""
        args, rows = self.trainer.args, self.trainer.args.train_batch_size
        at_once = -(-rows // self.parts)
        advice = "make data.block_size or the model smaller, or use training.precision=bf16"
        if half := next((n for n in range(at_once - 1, 0, -1) if rows % n == 0 and 2 * n <= at_once), 0):
            steps = args.gradient_accumulation_steps * rows // half
            advice = (
                f"set training.auto_find_batch_size=true, or training.gradient_accumulation_steps={steps} "
                f"({half} windows at once); the global batch of {args.global_batch_size} stays"
            )
        return (
            f"out of memory after step {self.trainer.state.global_step:,} with {at_once} windows at once; "
            f"{advice}; in an evaluation lower training.per_device_eval_batch_size="
            f"{args.per_device_eval_batch_size}; {self.trainer.checkpointer.describe_last_good()}"
        )
