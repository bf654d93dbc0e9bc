"""When a run is over, and which weights it ends with: the best ones, their average, or the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer_utils import SaveStrategy, TrainOutput

from craft.training import checkpoints
from craft.training.agreement import decided_by_first
from craft.training.recording import RecordingTrainer
from craft.training.signals import StopRequest
from craft.utils.logging import get_logger
from craft.utils.stopping import TrainingInterrupted

logger = get_logger(__name__)


class EndingTrainer(RecordingTrainer):
    """The part of `Trainer` that knows when to stop, and what is left then.

    Attributes:
        stop: signals, and a word with the other processes.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.stop = StopRequest()
        super().__init__(**kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Also saves at every new best, whatever `save_steps` says, and stops early."""
        if self.evaluation_due:
            return False
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.save_strategy != SaveStrategy.NO:
            self.control.should_save = True
        if self._patience_is_over(self.state):
            logger.info(
                f"stopping early: {self.args.early_stopping_patience} evaluations were no better than "
                f"{self.state.best_metric:.4f}"
            )
            self.control.should_training_stop = True
        return is_best

    def _patience_is_over(self, state: TrainerState) -> bool:
        """Read off the history of evaluations, so that a resumed run counts as if it had never stopped."""
        if not self.args.early_stopping_patience:
            return False
        key = "eval_" + str(self.args.metric_for_best_model).removeprefix("eval_")
        values = [entry[key] for entry in state.log_history if key in entry]
        if not values:
            return False
        best = values.index((max if self.args.greater_is_better else min)(values))
        return len(values) - 1 - best >= self.args.early_stopping_patience

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: float) -> TrainOutput:
        wanted = self.args.save_strategy != SaveStrategy.NO or self.stop.signum
        saved = self.saved_step == self.state.global_step
        if self.stop.signum and self.args.save_only_model and not self.is_fsdp_enabled:
            self.args.save_only_model, saved = False, False  # what is stopped is to go on
        if wanted and not saved:
            self._save_checkpoint(self.model_wrapped, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        if self.stop.signum:
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
            self.is_in_train = False
            logger.info(f"stopped at step {self.state.global_step:,} and saved; {self.way_out()}")
            self.finish_uploads()
            raise TrainingInterrupted(self.stop.exit_code)
        self.stay_whole()
        if self.average is not None:
            self.average.settle()
        self._check_best()
        # With a limit of 1, transformers would now delete the last checkpoint and keep the best one only.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self.watch.pause()
        try:
            return super()._finalize_training(trial, num_train_samples, start_time - self.watch.before)
        finally:
            self.args.save_total_limit = limit

    def _check_best(self) -> None:
        """The best checkpoint is only given back if it is as it was written; else the last weights are."""
        if not self.args.load_best_model_at_end:
            return
        # Only the process that writes checkpoints knows which is the best; all of them take part from here.
        best = self.state.best_model_checkpoint = decided_by_first(lambda: self.state.best_model_checkpoint)
        if best is None:
            return
        why = decided_by_first(lambda: checkpoints.damage(Path(best)))
        if why:
            logger.warning(f"the best checkpoint, {best}, is damaged ({why}): the last weights are kept")
            self.state.best_model_checkpoint = self.state.best_global_step = None

    def _stay_finished(self, state: TrainerState) -> TrainOutput:
        """Leaves the model as the finished run left it, and says so."""
        assert self.resumed is not None
        self.state = state
        best = checkpoints.checkpoint_dir(self.run_dir, state.best_global_step or -1)
        keep_best = self.args.load_best_model_at_end and best.is_dir() and not checkpoints.damage(best)
        self._load_from_checkpoint(str(best if keep_best else self.resumed))
        logger.info(
            f"this run is finished: {self.resumed} is at step {state.global_step:,}; "
            "a larger training.max_steps would train on"
        )
        loss = self.progress_at(self.resumed)["total_loss"] / max(1, state.global_step)
        return TrainOutput(state.global_step, loss, {"train_loss": loss})
