"""Where our trainer reaches into the loop of transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy

from craft.training.agreement import decided_by_first, together
from craft.training.distributed import at_step


class Hooks(TrainerCallback):
    """The moments of the loop at which the trainer has something of its own to do."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        together(self.trainer.restore_progress)
        together(self.trainer.find_parts)
        decided_by_first(self.trainer.record_start)
        self.trainer.stop.begun = True
        decided_by_first(self.trainer.when_accepted)
        if self.trainer.evaluation_due:
            self.trainer.catch_up()
        self.trainer.watch.run()

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.remember()

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.skip_nonfinite()

    def on_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.average is not None and not self.trainer.skipping:
            self.trainer.average.update()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.STEPS
        at_step(state.global_step)
        if self.trainer.stop.agreed():
            control.should_training_stop = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.stop.agreed():  # while it was saved; another step would only have to be saved again
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.stop.signum:  # the epoch isn't at its end, only this process is
            control.should_log = control.should_evaluate = control.should_save = False
