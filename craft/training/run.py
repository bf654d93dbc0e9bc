"""`run_training`: the loop of transformers in a frame that refuses, locks, obeys signals, ends well."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer_utils import IntervalStrategy, TrainOutput

from craft.sharing.record import METRICS_FILE, TRAINER_STATE
from craft.training.callbacks.best import patience_is_over
from craft.training.checkpointing import folders, resume_rules
from craft.training.checkpointing.checkpointer import Checkpointer, is_resumable, only_weights
from craft.training.checkpointing.disk import check_room
from craft.training.compilation import choose_compilation
from craft.training.distributed.agreement import on_rank0_broadcast, raise_on_all_ranks
from craft.training.distributed.rendezvous import peer_failure_context
from craft.training.ending import restore_finished_run
from craft.training.logging import begin_metrics
from craft.training.memory import is_out_of_memory, out_of_memory_message, set_micro_batch_size
from craft.training.sanity import check_alphabet
from craft.utils.errors import Failed, TrainingFailed, UserError
from craft.utils.files import explain_disk_errors, remove_staging
from craft.utils.locks import run_lock
from craft.utils.logging import get_logger
from craft.utils.stopping import TrainingInterrupted

logger = get_logger(__name__)

Loop = Callable[..., TrainOutput]
"""`transformers.Trainer.train`, bound to the trainer."""


def run_training(
    trainer: Any, loop: Loop, resume: str | Path | bool | None, allow_changes: bool, **kwargs: Any
) -> TrainOutput:
    """What `craft.training.base.Trainer.train` promises."""
    args = trainer.args
    if resume and trainer.is_fsdp_enabled:
        raise UserError(
            "a sharded run (FSDP) can't be resumed exactly; start a new run from the weights of its last "
            "checkpoint with models.init_from=RUN/checkpoint-N, or launch without --use_fsdp",
            code="setting-conflict",
        )
    if trainer.model is None:  # the trial before this one gave its model back
        trainer.model = trainer.call_model_init(kwargs.get("trial"))
    trainer.checkpointer = Checkpointer(
        trainer.run_dir,
        trainer.shared_parts(),
        trainer.rank_parts(),
        keep=args.save_total_limit,
        varying=("stopwatch", "time_budget", "wandb"),
        rank=args.process_index,
        world=args.world_size,
    )
    trainer.checkpointer.resumed = on_rank0_broadcast(lambda: trainer.checkpointer.find(resume))
    raise_on_all_ranks(lambda: check_folder(trainer))
    trainer.budget.begin()
    choose_compilation(trainer)
    planned = trainer.budget.planned_steps()
    if planned < 1:
        raise UserError(f"{planned} steps would be trained; set training.max_steps", code="setting-value")
    trainer.settings = trainer.decisive_settings(planned)
    trainer.changes, trainer.settings_moved, trainer.evaluation_due = {}, False, False
    trainer.guard.skipped = 0  # another trial may have trained before
    finished = raise_on_all_ranks(lambda: validate_resume(trainer, planned, allow_changes))
    if finished is not None:
        return restore_finished_run(trainer, finished)
    # Before anything is written, for what they lack or refuse. The loop keeps the optimizer.
    raise_on_all_ranks(lambda: trainer.create_optimizer_and_scheduler(planned))
    with ExitStack() as locks:
        on_rank0_broadcast(lambda: lock_run_dir(trainer, planned, locks))
        return _guarded(trainer, loop, **kwargs)


def check_folder(trainer: Any) -> None:
    """Refuses a folder with checkpoints of another run."""
    if trainer.checkpointer.resumed is None and any(folders.checkpoints(trainer.run_dir)):
        raise UserError(
            f"{trainer.run_dir} holds checkpoints of another run; resume it or choose another folder",
            code="setting-conflict",
        )


def validate_resume(trainer: Any, planned_steps: int, allow_changes: bool) -> TrainerState | None:
    """Compares a run with the checkpoint it goes on from, if any.

    Returns:
        The state of a run that has nothing left to train.

    Raises:
        UserError: for another alphabet, or settings that changed.
    """
    args, checkpointer = trainer.args, trainer.checkpointer
    checkpoint = checkpointer.resumed
    if checkpoint is None:
        return None
    check_alphabet(checkpoint, trainer.processing_class)
    trainer.changes, trainer.settings_moved = resume_rules.check_resume(
        checkpoint, checkpointer.progress(), trainer.settings, args, allow=allow_changes
    )
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
    if is_resumable(checkpoint):
        checkpointer.load("evaluation")
    due = trainer.evaluation_due and args.eval_strategy != IntervalStrategy.NO
    if not due and (state.global_step >= planned_steps or patience_is_over(args, state)):
        return state
    if not is_resumable(checkpoint):
        raise UserError(only_weights(checkpoint), code="run-changed")
    logger.info(f"resuming from {checkpoint} at step {state.global_step:,}")
    args.eval_on_start = False
    checkpointer.saved_step = state.global_step
    return None


def lock_run_dir(trainer: Any, planned_steps: int, locks: ExitStack) -> None:
    """Makes the run's folder this process' until `locks` are released, and opens its files.

    Raises:
        UserError: if another process trains there, or the disk has too little room.
    """
    run_dir = trainer.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    locks.enter_context(run_lock(run_dir))
    with explain_disk_errors(METRICS_FILE, run_dir, trainer.checkpointer.recovery_hint):
        remove_staging(run_dir)
        check_room(trainer, planned_steps)
        begin_metrics(run_dir, trainer.checkpointer.resumed_step)
        trainer.wandb.begin()


def _guarded(trainer: Any, loop: Loop, **kwargs: Any) -> TrainOutput:
    # The same seed in all processes would drop the same units everywhere.
    torch.manual_seed(trainer.args.seed + trainer.args.process_index)
    with trainer.stop.listening(trainer.args.ddp_timeout):  # also while W&B and uploads end
        try:
            with peer_failure_context(trainer.checkpointer.recovery_hint):
                result = _loop(trainer, loop, **kwargs)
                trainer.uploads.finish()
                if trainer.stop.requested_anywhere():  # after the last step; all is saved
                    logger.info(trainer.checkpointer.once_trained())
                    raise TrainingInterrupted(trainer.stop.exit_code)
                return result
        except (Failed, TrainingInterrupted) as end:
            trainer.wandb.finish(exit_code=1 if isinstance(end, Failed) else 0)
            raise
        finally:
            trainer.watch.pause()
            trainer.uploads.cancel()
            trainer.watchdog.close()
            # Autocast and compilation end with training; it may be prepared again.
            trainer.model_wrapped = trainer.model
            for attribute in ("forward", "_is_accelerate_prepared"):
                trainer.model.__dict__.pop(attribute, None)


def _loop(trainer: Any, loop: Loop, **kwargs: Any) -> TrainOutput:
    args = trainer.args
    asked, finds = args.train_batch_size, args.auto_find_batch_size
    args.auto_find_batch_size = False  # transformers would only make the global batch smaller
    try:
        _restore_micro_batch_size(trainer)
        trainer.finds_batch_size = finds
        return loop(str(trainer.resumed) if trainer.resumed else None, **kwargs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        args.auto_find_batch_size = finds
        message = out_of_memory_message(trainer)
    finally:
        args.auto_find_batch_size, trainer.finds_batch_size = finds, False
        set_micro_batch_size(trainer, asked)
    raise TrainingFailed(message, code="out-of-memory")


def _restore_micro_batch_size(trainer: Any) -> None:
    """Goes on with the micro-batches of the resumed run, which may have found out what fits."""
    args, decides = trainer.args, {"training.global_batch_size", "training.gradient_accumulation_steps"}
    if trainer.resumed is None or trainer.changes.keys() & decides:
        return
    if trainer.checkpointer.progress()["processes"] == args.world_size:
        trainer.checkpointer.load("accumulation")
        set_micro_batch_size(trainer, args.global_batch_size // args.shares)
