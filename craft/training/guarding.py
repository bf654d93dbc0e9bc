"""What a single step may meet: a loss or gradient that isn't finite, and memory that isn't there.

Both stop the run with a sentence, unless the user asked for more: to skip a few such batches, to cut
micro-batches into parts until they fit. Neither costs anything in a run that doesn't ask for it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from craft.training.memory import (
    Kept,
    available,
    explanation,
    few,
    free_memory,
    in_parts,
    is_out_of_memory,
)
from craft.training.resuming import ResumingTrainer
from craft.utils.common import TrainingFailed
from craft.utils.hardware import try_format
from craft.utils.logging import get_logger

logger = get_logger(__name__)

TRIAL = 1e9
"""Floating-point operations of the step in which a precision is tried: some 10 ms on two cores."""


class GuardedTrainer(ResumingTrainer):
    """The part of `Trainer` that looks after single steps.

    Attributes:
        skipped: how many batches were skipped in the whole run.
        skipping: whether this step's was.
        parts: into how many parts this process cuts its micro-batches.
        finding: whether it may cut them further.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.skipped, self.skipping = 0, False
        self.parts, self.finding = 1, False
        self._norm: Any = None
        self._done: list[dict[str, Any]] = []  # micro-batches of this step
        super().__init__(**kwargs)

    def progress_state(self) -> dict[str, Any]:
        return {**super().progress_state(), "skipped_batches": self.skipped}

    def rank_state(self) -> dict[str, Any]:
        return {**super().rank_state(), "parts": self.parts}

    def restore_progress(self) -> None:
        self.skipped, self.parts = 0, 1
        super().restore_progress()
        if self.resumed is not None:
            self.skipped = self.progress_at(self.resumed)["skipped_batches"]

    def load_rank_states(self, per_rank: list[dict[str, Any]]) -> None:
        super().load_rank_states(per_rank)
        if len(per_rank) == self.args.world_size:
            self.parts = per_rank[self.args.process_index]["parts"]

    def kept_for_all(self) -> AbstractContextManager[None]:
        """Inside, in training, a failure of this process alone is kept until all processes meet."""
        return self.stop.keeping() if self.is_in_train else nullcontext()

    def remember(self) -> None:
        """Keeps what a step that is skipped or done again must start from; called before each step."""
        if not (self.finding or self.args.skip_nonfinite_batches):
            return
        self._done = []
        self._loss_before = self._tr_loss.clone()
        self._drawn_before = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in self.rng_devices()]

    def go_back(self) -> None:
        """Undoes what this step did so far, but for its random numbers."""
        self.model.zero_grad(set_to_none=True)
        self._tr_loss.copy_(self._loss_before)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Inside, a step may be tried: no gradient, random number or state of it stays."""
        training = self.model.training
        self.model.train()
        try:
            with torch.random.fork_rng(self.rng_devices()):
                yield
        finally:
            self.model.train(training)
            self.model.zero_grad(set_to_none=True)

    def rng_devices(self) -> list[int]:
        return [torch.cuda.current_device()] if self.args.device.type == "cuda" else []

    # ---- A precision that was asked for

    def try_precision(self) -> None:
        """Before anything is trained or written: a small step in the precision that was asked for, beside one
        in float32.

        Raises:
            UserError: if this machine or model can't take it.
        """
        wanted, way_out = self.args.precision_wanted, "use training.precision=fp32, or auto"
        weights = getattr(self.model, "dtype", torch.float32)
        if weights in (torch.bfloat16, torch.float16):
            wanted, way_out = f"models.dtype={str(weights)[6:]}", "use models.dtype=float32"
        if not wanted or self.is_fsdp_enabled or self.is_deepspeed_enabled:  # parts of a model can't step yet
            return
        with self.undisturbed():  # a loader draws a random number
            batch = self._prepare_inputs(next(iter(self.get_train_dataloader())))
        size = TRIAL * batch["input_ids"].numel() / max(1.0, float(self.floating_point_ops(batch)))
        batch = few(batch, int(size))
        exact = self.model if weights == torch.float32 else copy.deepcopy(self.model).float()

        def step(model: Any, context: AbstractContextManager[Any]) -> None:
            with self.undisturbed():
                with context:
                    loss = self.compute_loss(model, dict(batch), num_items_in_batch=1)
                loss.backward()

        warning = try_format(
            wanted,
            lambda: step(self.model, self.accelerator.autocast()),
            lambda: step(exact, nullcontext()),
            way_out,
        )
        if warning and self.is_world_process_zero():
            logger.warning(warning)

    # ---- Numbers that aren't finite

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        self._norm = super()._get_grad_norm(model, grad_norm)
        return self._norm

    def skip_nonfinite(self) -> None:
        """Before an optimizer step: leaves the batch out, if it would spoil the weights and that is allowed.

        In float16 the loss scaler does so by itself.
        """
        self.skipping, most = False, self.args.skip_nonfinite_batches
        if not most or self.accelerator.scaler is not None:
            return
        loss, norm = (self._tr_loss - self._loss_before).item(), float(self._norm)
        bad = not (math.isfinite(loss) and math.isfinite(norm))
        if not self.stop.most(int(bad)) or self.skipped >= most:
            return
        self.skipped, self.skipping = self.skipped + 1, True
        self.go_back()
        self._globalstep_last_logged += 1  # the mean of what is logged is that of the other steps
        if self.is_world_process_zero():
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
            logger.warning(
                f"step {self.state.global_step + 1:,}: {what} at learning rate "
                f"{self._get_learning_rate():.3g}; this batch is skipped ({self.skipped} of at most {most})"
            )

    def refuse_nonfinite(self, tr_loss: Tensor, grad_norm: Any, learning_rate: float | None) -> None:
        """After a step: stops the run if it wasn't computed with numbers.

        Raises:
            TrainingFailed: with the step, the learning rate, the last good checkpoint and advice.
        """
        what, scaler = "", self.accelerator.scaler
        if not math.isfinite(tr_loss.item()):
            what = f"the loss is {tr_loss.item()}"
        elif scaler is None and grad_norm is not None and not math.isfinite(float(grad_norm)):
            what = f"the gradient norm is {float(grad_norm)}"
        elif scaler is not None and scaler.get_scale() < 2**-10:
            what = "float16 overflows at every loss scale"
        if not what:
            return
        rate = f" at learning rate {learning_rate:.3g}" if learning_rate is not None else ""
        skipped = f", after {self.skipped} skipped batches" if self.skipped else ""
        raise TrainingFailed(
            f"training stopped at step {self.state.global_step:,}: {what}{rate}{skipped}; {self.last_good}; "
            "try a lower training.learning_rate, more training.warmup_steps, training.max_grad_norm=1, or "
            "training.skip_nonfinite_batches=10 if it is a rare batch"
        )

    # ---- Memory that isn't there

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in transformers, in as many parts as fit.

        Raises:
            TrainingFailed: if memory is short: what took it, and how many windows at once should fit.
        """
        if self.finding:
            self._done.append(inputs)
        try:
            return self._step_in_parts(model, inputs, num_items_in_batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        except IndexError as error:
            raise TrainingFailed(
                f"step {self.state.global_step + 1:,}: {error}; does the data hold ids beyond the vocabulary?"
            ) from error
        rows = len(inputs["input_ids"])
        # Other processes are in the middle of adding up gradients, which can't be done again.
        while self.finding and self.args.world_size == 1 and self.parts < rows:
            self._halve(rows, f"at step {self.state.global_step + 1:,}")
            try:
                return self._again(model, num_items_in_batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
        raise TrainingFailed(self.no_memory(inputs))

    def _step_in_parts(self, model: Any, inputs: dict[str, Any], count: Any) -> Tensor:
        if self.parts == 1:
            return super().training_step(model, inputs, count)
        pieces = in_parts(inputs, min(self.parts, len(inputs["input_ids"])))
        losses = []
        for piece in pieces:  # gradients are shared once, with the last one
            with self.accelerator.no_sync(model) if piece is not pieces[-1] else nullcontext():
                losses.append(super().training_step(model, piece, count))
        return torch.stack(losses).sum()

    def _again(self, model: Any, count: Any) -> Tensor:
        """This step from its beginning, in the parts that are now set."""
        self.go_back()
        free_memory(self.args.device)
        torch.set_rng_state(self._drawn_before[0])
        for device, state in zip(self.rng_devices(), self._drawn_before[1]):
            torch.cuda.set_rng_state(state, device)
        return torch.stack([self._step_in_parts(model, done, count) for done in self._done]).sum()

    def _halve(self, rows: int, where: str) -> None:
        self.parts = min(rows, 2 * self.parts)
        logger.warning(
            f"out of memory {where}: {-(-rows // self.parts)} windows at once from now on, in {self.parts} "
            f"parts; the global batch of {self.args.global_batch_size} stays"
        )

    def find_parts(self) -> None:
        """Before the first step: cuts micro-batches into halves until a forward and backward pass fits,
        beside the optimizer's state."""
        if not self.finding:
            return
        with self.undisturbed():  # a loader draws a random number
            batch = self._prepare_inputs(next(iter(self.get_train_dataloader())))
        rows, device = len(batch["input_ids"]), self.args.device
        while True:
            state = self.sizes.optimizer if device.type == "cuda" and self.resumed is None else 0
            try:
                with self.undisturbed():
                    reserved = torch.empty(state, dtype=torch.uint8, device=device)
                    piece = max(in_parts(batch, self.parts), key=lambda part: len(part["input_ids"]))
                    with self.accelerator.autocast():
                        loss = self.compute_loss(self.model, piece, num_items_in_batch=1)
                    loss.backward()
                    del loss, reserved
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            finally:
                free_memory(device)
            if self.parts >= rows:
                raise TrainingFailed(self.no_memory(batch))
            self._halve(rows, "in a first try")

    def no_memory(self, inputs: dict[str, Any]) -> str:
        """What took the memory, and what to do."""
        rows, step = len(inputs["input_ids"]), self.state.global_step + 1
        at_once = -(-rows // self.parts)
        self.model.zero_grad(set_to_none=True)
        free_memory(self.args.device)
        free = available(self.args.device)
        text, most = explanation(at_once, self.sizes, self._bytes_per_row(inputs), free)
        fitting = max((n for n in range(1, most + 1) if rows % n == 0), default=0)
        if fitting:
            steps = self.args.gradient_accumulation_steps * rows // fitting
            advice = (
                f"set training.auto_find_batch_size=true, or training.gradient_accumulation_steps={steps} "
                f"({fitting} windows at once); the global batch of {self.args.global_batch_size} stays"
            )
        else:
            advice = "make data.block_size or the model smaller, or use training.precision=bf16"
        what = f"out of memory at step {step:,} with {at_once} windows at once"
        return f"{what}: {text}; {advice}; {self.last_good}"

    def _bytes_per_row(self, inputs: dict[str, Any]) -> int | None:
        """Bytes that a forward pass over one window keeps; None if there is no room for it either."""
        kept = Kept(self.model)
        one = in_parts(inputs, len(inputs["input_ids"]))[0]
        try:
            with self.undisturbed(), kept.hooks, self.accelerator.autocast():
                self.compute_loss(self.model, self._prepare_inputs(one), num_items_in_batch=1)
        except (RuntimeError, MemoryError):
            return None
        return max(1, kept.bytes)
