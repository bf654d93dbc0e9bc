"""`Trainer`: Hugging Face's, made safe to interrupt, resume and leave alone.

What it adds: checkpoints that are whole or absent, with everything that an exact resume needs; a stop on
NaN instead of hours of it; signals that save; an average of the weights; Muon; metrics in a file of the
run. It knows nothing of language.

It is a chain of classes, each of which knows of one thing and uses those before it:

OptimizingTrainer     optimizer and schedule                  optimization.py
ShardingTrainer       a model in parts                        sharding.py
SendingTrainer        checkpoints on their way to the Hub     sending.py
SavingTrainer         writing checkpoints                     saving.py
ResumingTrainer       going on from one                       resuming.py
GuardedTrainer        what a single step may meet             guarding.py
RecordingTrainer      metrics, history, W&B                   recording.py
EndingTrainer         when to stop, and with which weights    ending.py
Trainer               the run from its beginning to its end   here
ValidatingTrainer     scores and samples of a language model  validating.py
LanguageModelTrainer  carried states and the order of data    base.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer_utils import IntervalStrategy, TrainOutput
from transformers.utils.logging import disable_progress_bar

from craft.sharing.record import METRICS_FILE, STATE
from craft.training import checkpoints, disk, tracking
from craft.training.agreement import decided_by_first, together
from craft.training.arguments import CraftTrainingArguments
from craft.training.callbacks import Hooks
from craft.training.distributed import among_peers
from craft.training.ema import WeightAverage
from craft.training.ending import EndingTrainer
from craft.training.logging import Progress
from craft.training.memory import is_out_of_memory
from craft.training.precision import suit_attention
from craft.training.saving import is_resumable, only_weights
from craft.training.settings import model_settings, training_settings
from craft.training.uploads import COPIES
from craft.training.watchdog import Watchdog
from craft.utils.claims import claimed
from craft.utils.common import TrainingFailed, UserError
from craft.utils.logging import get_logger
from craft.utils.stopping import TrainingInterrupted

logger = get_logger(__name__)


class NothingLeft(Exception):
    """The evaluation that a signal had interrupted was the last thing to do."""


class Trainer(EndingTrainer):
    """A `transformers.Trainer` whose runs can be killed at any moment and continued bit for bit.

    Args:
        model: a `PreTrainedModel`.
        args: its `output_dir` is the run directory.
        run_config: the resolved run, saved beside the weights.
        **kwargs: as for `transformers.Trainer`.

    Attributes:
        when_accepted: is done in the main process once training is about to start and nothing was refused; if
            it can't be done, no process trains.

    Raises:
        UserError: for arguments that this machine or model can't be trained with.
    """

    args: CraftTrainingArguments

    def __init__(
        self,
        model: Any,
        args: CraftTrainingArguments,
        *,
        run_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        args.settle_precision()
        suit_attention(model, args.precision, on_cpu=args.on_cpu)
        use_cache = getattr(model.config, "use_cache", None)
        super().__init__(model=model, args=args, **kwargs)
        if use_cache is not None:
            model.config.use_cache = use_cache  # switched off for training, and saved so with the model
        self.run_config = run_config or {}
        self.when_accepted: Callable[[], None] = lambda: None
        self.progress = Progress()
        if args.disable_tqdm:
            disable_progress_bar()  # also of "Writing model shards" at every checkpoint
        for callback in (PrinterCallback, ProgressCallback):
            self.pop_callback(callback)
        self.add_callback(Hooks(self))
        self.add_callback(self.progress)
        self.watchdog = Watchdog(args.stall_seconds) if args.stall_seconds else None
        if self.watchdog is not None and self.is_world_process_zero():
            self.add_callback(self.watchdog)

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        *,
        allow_changes: bool = False,
        **kwargs: Any,
    ) -> TrainOutput:
        """Trains to the end, or until a signal.

        Args:
            resume_from_checkpoint: a run directory (its newest whole checkpoint), a `checkpoint-N` folder,
                or True for `args.output_dir`.
            allow_changes: go on although settings changed that decide the weights; recorded in the run.

        Returns:
            As in transformers. `self.model` then holds what should be exported: the best weights with
            `load_best_model_at_end`, otherwise the average with `ema_decay`, otherwise the last.

        Raises:
            TrainingInterrupted: (a SystemExit) after SIGTERM, SIGUSR1 or Ctrl-C, with a checkpoint saved.
            TrainingFailed: the loss or the gradient isn't finite any more, or a checkpoint can't be
                written.
            UserError: nothing to resume from, settings that changed, a disk that is too small.
        """
        if resume_from_checkpoint and self.is_fsdp_enabled:
            raise UserError(
                "a sharded run (FSDP) can't be resumed exactly; start a new run from the weights of its last "
                "checkpoint with models.init_from=RUN/checkpoint-N, or launch without --use_fsdp"
            )
        if self.model is None:  # the trial before this one gave its model back
            self.model = self.call_model_init(kwargs.get("trial"))
        self.resumed = decided_by_first(lambda: self.find(resume_from_checkpoint))
        planned = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        if planned < 1:
            raise UserError(f"{planned} steps would be trained; set training.max_steps")
        self.settings = self.decisive_settings(planned)
        self.saved_step, self.evaluation_due, self.written = None, False, []
        state = together(lambda: self._look_back(planned, allow_changes))
        if state is not None:
            return self._stay_finished(state)
        together(self.try_precision)
        with ExitStack() as claims:
            decided_by_first(lambda: self._take_folder(planned, claims))
            return self._train(**kwargs)

    def _look_back(self, planned: int, allow_changes: bool) -> TrainerState | None:
        """Compares this run with the checkpoint it goes on from, if any.

        Returns:
            The state of a run that has nothing left to train.
        """
        if self.resumed is None:
            if any(checkpoints.checkpoints(self.run_dir)):
                raise UserError(
                    f"{self.run_dir} holds checkpoints of another run; resume it or choose another folder"
                )
            return None
        self.check_settings(allow_changes)
        state = TrainerState.load_from_json(str(self.resumed / STATE))
        due = self.progress_at(self.resumed)["evaluation_due"] and self.args.eval_strategy != "no"
        if not due and (state.global_step >= planned or self._patience_is_over(state)):
            return state
        if not is_resumable(self.resumed):
            raise UserError(only_weights(self.resumed))
        logger.info(f"resuming from {self.resumed} at step {state.global_step:,}")
        if left := checkpoints.abandoned(self.run_dir, state.global_step):
            logger.warning(
                f"{', '.join(checkpoint.name for checkpoint in left)} will be deleted once this run has "
                "written a good checkpoint of its own: they belong to the line that it leaves"
            )
        self.args.eval_on_start = False
        self.saved_step = state.global_step
        return None

    def _take_folder(self, planned: int, claims: ExitStack) -> None:
        """Makes the run's folder this process' until `claims` are given back, and opens its files."""
        self._check_room(planned)
        claims.enter_context(claimed(self.run_dir))
        with disk.writing(METRICS_FILE, self.run_dir, self.way_out):
            self._open_logs()

    def _train(self, **kwargs: Any) -> TrainOutput:
        # The same seed in all processes would drop the same units everywhere.
        torch.manual_seed(self.args.seed + self.args.process_index)
        try:
            with self.stop.listening(), among_peers(self.way_out):
                try:
                    result = self._loop(**kwargs)
                except NothingLeft:
                    result = self._finalize_training(None, 0, time.time())
                self.stop.settle()
                self.finish_uploads()
                if self.stop.asked:  # after the last step; all is saved
                    logger.info(self.once_trained())
                    raise TrainingInterrupted(self.stop.exit_code)
                return result
        except (TrainingFailed, TrainingInterrupted) as end:
            if self.wandb_id is not None:
                tracking.finish(exit_code=1 if isinstance(end, TrainingFailed) else 0)
            raise
        finally:
            self.watch.pause()
            self.progress.close()
            self.uploads.leave()
            if self.watchdog is not None:
                self.watchdog.close()
            # Autocast and compilation end with training; another trainer may prepare the model again.
            for attribute in ("forward", "_is_accelerate_prepared"):
                self.model.__dict__.pop(attribute, None)

    def _loop(self, **kwargs: Any) -> TrainOutput:
        """The loop of transformers, whose own search for a batch size would start the run anew."""
        wanted, self.args.auto_find_batch_size = self.args.auto_find_batch_size, False
        self.finding = wanted
        try:
            return super().train(str(self.resumed) if self.resumed else None, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            self.args.auto_find_batch_size = wanted
        batch = next(iter(self.get_train_dataloader()))
        raise TrainingFailed(self.no_memory(batch))  # of the optimizer, or in passing

    # ---- The loop

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        own = self.raw_weights()
        if self.args.ema_decay is not None:
            self.average = WeightAverage(self.model, self.args.ema_decay)
            if own is not None and self.resumed is not None:
                self.average.resume(own, self.progress_at(self.resumed)["average_updates"])
        elif own is not None:
            self.model.load_state_dict(own, strict=False)
        return prepared

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        if self.skipping:
            grad_norm = None  # of the batch that was left out
        control = self.control
        due = control.should_log or control.should_evaluate or control.should_save
        due |= control.should_training_stop  # a signal saves: nothing may be saved unseen
        if due or self.args.device.type == "cpu":  # on a GPU, looking at a number waits for it
            self.refuse_nonfinite(tr_loss, grad_norm, kwargs.get("learning_rate"))
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def catch_up(self) -> None:
        """Does the evaluation that a signal interrupted, as it would have been done then."""
        self.evaluation_due = False
        if self.args.eval_strategy == IntervalStrategy.NO:
            return
        if self.resumed is not None:  # a checkpoint of the best step is written anew, generators and all
            self._load_rng_state(str(self.resumed))
        metrics = self._evaluate(None, None)
        if self._determine_best_metric(metrics, None) and self.control.should_save:
            self._save_checkpoint(self.model_wrapped, None)
        self.control.should_save = False
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            raise NothingLeft

    # ---- Beginning and end

    def decisive_settings(self, planned_steps: int) -> dict[str, Any]:
        """What decides the weights, by name; kept in every checkpoint and compared on resuming."""
        return {**training_settings(self.args, planned_steps), **model_settings(self.model)}

    def _check_room(self, planned_steps: int) -> None:
        """Creates the run's folder, if its checkpoints will fit on that disk."""
        args = self.args
        best = args.eval_strategy != IntervalStrategy.NO
        disk.check_room(
            self.run_dir,
            self.sizes.checkpoint(args.save_only_model),
            keep=args.save_total_limit,
            best=best,
            saves=disk.planned_saves(args, planned_steps) + best,
            sent=COPIES if self.sends_checkpoints else 0,
            existing=sum(disk.folder_bytes(c) for c in checkpoints.checkpoints(self.run_dir)),
        )
        self.run_dir.mkdir(parents=True, exist_ok=True)
