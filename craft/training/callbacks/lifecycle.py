"""What happens between loading and the first step, after the last one, and when a run is asked to stop."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy

from craft.training.distributed.agreement import on_rank0_broadcast, raise_on_all_ranks
from craft.training.distributed.rendezvous import report_step
from craft.training.ending import save, stop_training
from craft.utils.files import explain_disk_errors
from craft.utils.history import HISTORY, add_event


class Lifecycle(TrainerCallback):
    """Brings a run to the state in which its next step is taken; the one place where it is stopped for a
    signal: after a step or a save, with everything saved.

    Args:
        trainer: a `craft.training.base.Trainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.nothing_left = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        trainer, self.nothing_left = self.trainer, False
        raise_on_all_ranks(self._restore_parts)
        on_rank0_broadcast(self._record_start)
        trainer.stop.begun = True
        on_rank0_broadcast(trainer.on_run_validated)
        if trainer.evaluation_due:
            self._run_deferred_evaluation()
        trainer.watch.run()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        report_step(state.global_step)
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.STEPS
        control.should_training_stop |= self.trainer.stop.requested_anywhere()

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # While it was saved; another step would only have to be saved again.
        control.should_training_stop |= self.trainer.stop.requested_anywhere()

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.nothing_left:  # it was done before the loop
            control.should_log = control.should_evaluate = control.should_save = False
        if self.trainer.stop.signum:  # the epoch isn't at its end, only this process is
            stop_training(self.trainer)

    def _restore_parts(self) -> None:
        """Takes over the running sums and carried states, once the loop has reset them."""
        trainer = self.trainer
        if trainer.resumed is None:
            return
        state = trainer.state
        state.compute_steps(trainer.args, state.max_steps)  # how often things happen may have changed
        trainer.budget.apply_plan(state)
        state.best_model_checkpoint = None  # ours to load and to keep, by `best_global_step`
        trainer._initial_global_step = 0  # the mean loss at the end is that of the whole run
        checkpointer = trainer.checkpointer
        checkpointer.load(*(checkpointer.parts.keys() - {"optimization", "accumulation"}))
        checkpointer.load_rank_parts(checkpointer.rank_parts.keys() - {"generators"})

    def _record_start(self) -> None:
        """Writes down that the run begins or goes on, once nothing was refused."""
        trainer, checkpointer = self.trainer, self.trainer.checkpointer
        details: dict[str, Any] = {"step": checkpointer.resumed_step}
        details["processes"] = trainer.args.world_size
        if trainer.changes:
            details["changes"] = {name: list(pair) for name, pair in trainer.changes.items()}
        with explain_disk_errors(HISTORY, trainer.run_dir, checkpointer.recovery_hint):
            add_event(trainer.run_dir, "resumed" if trainer.resumed else "started", **details)

    def _run_deferred_evaluation(self) -> None:
        """Does the evaluation that a signal interrupted, as it would have been done then."""
        trainer = self.trainer
        trainer.evaluation_due = False
        if trainer.args.eval_strategy == IntervalStrategy.NO:
            return
        trainer._load_rng_state(str(trainer.resumed))  # a checkpoint of the best step is written anew
        metrics = trainer._evaluate(None, None)
        trainer._determine_best_metric(metrics, None)
        if trainer.control.should_save:
            save(trainer)
        # The loop of transformers always begins a step: then `get_batch_samples` returns no batches.
        trainer.control.should_training_stop |= trainer.state.global_step >= trainer.state.max_steps
        self.nothing_left = trainer.control.should_training_stop
