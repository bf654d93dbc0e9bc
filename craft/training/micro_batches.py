"""`MicroBatches`: a step in as many parts as fit into memory, and what to do if even one doesn't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from craft.training.checkpointing.parts import State
from craft.training.memory import (
    SavedActivationBytes,
    available,
    explanation,
    free_memory,
    in_parts,
    is_out_of_memory,
)
from craft.training.step_state import rng_devices
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
        self._done: list[dict[str, Any]] = []  # micro-batches of this step

    def state_dict(self) -> State:
        return {"parts": self.parts}

    def load_rank_states(self, states: Sequence[State], rank: int) -> None:
        if len(states) == self.trainer.args.world_size:
            self.parts = states[rank]["parts"]

    def begin_step(self) -> None:
        """Keeps what a step that is done again must start from."""
        self._done = []
        devices = rng_devices(self.trainer.args.device)
        self._drawn_before = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in devices]

    def run(self, step: Step, model: Any, inputs: dict[str, Any], count: Any) -> Tensor:
        """One micro-batch.

        Raises:
            TrainingFailed: if memory is short: what took it, and how many windows at once should fit.
        """
        trainer = self.trainer
        number = trainer.state.global_step + 1
        if self.searching:
            self._done.append(inputs)
        try:
            return self._in_parts(step, model, inputs, count)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        except IndexError as error:
            raise TrainingFailed(
                f"step {number:,}: {error}; does the data hold ids beyond the vocabulary?"
            ) from error
        rows = len(inputs["input_ids"])
        # Other processes are in the middle of adding up gradients, which can't be done again.
        while self.searching and trainer.args.world_size == 1 and self.parts < rows:
            self._halve(rows, f"at step {number:,}")
            try:
                return self._again(step, model, count)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
        raise TrainingFailed(self.explain(inputs))

    def _in_parts(self, step: Step, model: Any, inputs: dict[str, Any], count: Any) -> Tensor:
        if self.parts == 1:
            return step(model, inputs, count)
        pieces = in_parts(inputs, min(self.parts, len(inputs["input_ids"])))
        losses = []
        for piece in pieces:  # gradients are shared once, with the last one
            with self.trainer.accelerator.no_sync(model) if piece is not pieces[-1] else nullcontext():
                losses.append(step(model, piece, count))
        return torch.stack(losses).sum()

    def _again(self, step: Step, model: Any, count: Any) -> Tensor:
        """This step from its beginning, in the parts that are now set."""
        self.trainer.step_state.rollback()
        free_memory(self.trainer.args.device)
        torch.set_rng_state(self._drawn_before[0])
        for device, state in zip(rng_devices(self.trainer.args.device), self._drawn_before[1]):
            torch.cuda.set_rng_state(state, device)
        return torch.stack([self._in_parts(step, model, done, count) for done in self._done]).sum()

    def _halve(self, rows: int, where: str) -> None:
        self.parts = min(rows, 2 * self.parts)
        logger.warning(
            f"out of memory {where}: {-(-rows // self.parts)} windows at once from now on, in {self.parts} "
            f"parts; the global batch of {self.trainer.args.global_batch_size} stays"
        )

    def find_size(self) -> None:
        """Before the first step: cuts micro-batches into halves until a forward and backward pass fits,
        beside the optimizer's state."""
        if not self.searching:
            return
        trainer = self.trainer
        with trainer.step_state.preserved():  # a loader draws a random number
            batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        rows, device = len(batch["input_ids"]), trainer.args.device
        while True:
            fresh = device.type == "cuda" and trainer.resumed is None
            try:
                with trainer.step_state.preserved():
                    reserved = torch.empty(
                        trainer.sizes.optimizer if fresh else 0, dtype=torch.uint8, device=device
                    )
                    piece = max(in_parts(batch, self.parts), key=lambda part: len(part["input_ids"]))
                    with trainer.accelerator.autocast():
                        loss = trainer.compute_loss(trainer.model, piece, num_items_in_batch=1)
                    loss.backward()
                    del loss, reserved
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            finally:
                free_memory(device)
            if self.parts >= rows:
                raise TrainingFailed(self.explain(batch))
            self._halve(rows, "in a first try")

    def explain(self, inputs: dict[str, Any]) -> str:
        """What took the memory, and what to do."""
        trainer, args = self.trainer, self.trainer.args
        rows, step = len(inputs["input_ids"]), trainer.state.global_step + 1
        at_once = -(-rows // self.parts)
        trainer.model.zero_grad(set_to_none=True)
        free_memory(args.device)
        free = available(args.device)
        text, most = explanation(at_once, trainer.sizes, self._bytes_per_row(inputs), free)
        fitting = max((n for n in range(1, most + 1) if rows % n == 0), default=0)
        if fitting:
            steps = args.gradient_accumulation_steps * rows // fitting
            advice = (
                f"set training.auto_find_batch_size=true, or training.gradient_accumulation_steps={steps} "
                f"({fitting} windows at once); the global batch of {args.global_batch_size} stays"
            )
        else:
            advice = "make data.block_size or the model smaller, or use training.precision=bf16"
        what = f"out of memory at step {step:,} with {at_once} windows at once"
        return f"{what}: {text}; {advice}; {trainer.checkpointer.last_good()}"

    def _bytes_per_row(self, inputs: dict[str, Any]) -> int | None:
        """Bytes that a forward pass over one window saves; None if there is no room for it either."""
        trainer = self.trainer
        saved = SavedActivationBytes(trainer.model)
        one = in_parts(inputs, len(inputs["input_ids"]))[0]
        try:
            with trainer.step_state.preserved(), saved.hooks, trainer.accelerator.autocast():
                trainer.compute_loss(trainer.model, trainer._prepare_inputs(one), num_items_in_batch=1)
        except (RuntimeError, MemoryError):
            return None
        return max(1, saved.bytes)
