"""A loss or gradient that isn't finite: the run stops with advice, or skips a few such batches if it may."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from craft.training.checkpointing.parts import StepSnapshot
from craft.utils.errors import TrainingFailed
from craft.utils.logging import get_logger

logger = get_logger(__name__)


class NonFiniteGuard(TrainerCallback):
    """Looks at the loss and the gradient norm of every step, before the step counts.

    Args:
        trainer: keeps the norm of the last gradient as `grad_norm`, and can take a step back.

    Attributes:
        skipped: how many batches were skipped in the whole run.
        skipping: whether this step's was.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.skipped, self.skipping = 0, False
        self._before: StepSnapshot
        self._rate = 0.0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.skip_nonfinite_batches:
            self._before = StepSnapshot(self.trainer)

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Skips the batch if it isn't finite and that is allowed; in float16 the loss scaler does so."""
        trainer = self.trainer
        self.skipping, self._rate = False, trainer._get_learning_rate()
        if not args.skip_nonfinite_batches or trainer.accelerator.scaler is not None:
            return
        before = self._before.states["running_loss"]["loss"]
        loss, norm = (trainer._tr_loss - before).item(), float(trainer.grad_norm)
        bad = not (math.isfinite(loss) and math.isfinite(norm))
        if not trainer.stop.max_over_ranks(int(bad)) or self.skipped >= args.skip_nonfinite_batches:
            return
        self.skipped, self.skipping = self.skipped + 1, True
        self._before.rollback()
        trainer._globalstep_last_logged += 1  # the logged mean is that of the other steps
        if state.is_world_process_zero:
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
            logger.warning(
                f"step {state.global_step + 1:,}: {what} at learning rate {self._rate:.3g}; "
                f"this batch is skipped ({self.skipped} of at most {args.skip_nonfinite_batches})"
            )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        due = control.should_log or control.should_evaluate or control.should_save
        if due or args.device.type == "cpu":  # on a GPU, looking at a number waits for it
            self.check()

    def check(self) -> None:
        """Stops the run if this step's loss or gradient isn't finite; called before each save, too.

        Raises:
            TrainingFailed: with the step, the learning rate, the last good checkpoint and advice.
        """
        trainer, state = self.trainer, self.trainer.state
        what, scaler, loss = "", trainer.accelerator.scaler, trainer._tr_loss.item()
        norm = None if self.skipping else trainer.grad_norm
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
        elif scaler is None and norm is not None and not math.isfinite(float(norm)):
            what = f"the gradient norm is {float(norm)}"
        elif scaler is not None and scaler.get_scale() < 2**-10:
            what = "float16 overflows at every loss scale"
        if not what:
            return
        skipped = f", after {self.skipped} skipped batches" if self.skipped else ""
        raise TrainingFailed(
            f"training stopped at step {state.global_step:,}: {what} at learning rate {self._rate:.3g}"
            f"{skipped}; {trainer.checkpointer.describe_last_good()}; try a lower training.learning_rate, "
            "more training.warmup_steps, training.max_grad_norm=1, or training.skip_nonfinite_batches=10 if "
            "it is a rare batch",
            code="not-finite",
        )
